"""From a row to the messages of a conversation, or to a text."""

from tunestation.data.formats import agents, chats, pairs, tables, texts  # they register their formats
from tunestation.data.formats.message import INSTRUCTIONS, ROLES, Draft, Message, Role
from tunestation.data.formats.registry import FORMATS, RowFormat, row_format
from tunestation.data.formats.values import Unusable

__all__ = ["FORMATS", "INSTRUCTIONS", "ROLES", "Draft", "Message", "Role", "RowFormat", "Unusable", "row_format"]
__all__ += ["agents", "chats", "pairs", "tables", "texts"]
