"""From the messages of a row to a conversation that can be trained, or the reason why it cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from tunestation.data.formats import FORMATS, Message
from tunestation.data.readers import Row
from tunestation.errors import InputError

PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True)
class Conversation:
    """What is learned from one row: it ends with an answer and has at least one answer to learn."""

    messages: tuple[Message, ...]
    where: str
    """Place of the row."""
    repaired: str = ""
    """What was mended; empty for most rows."""


@dataclass(frozen=True)
class Dropped:
    """A row that cannot be trained."""

    where: str
    reason: str


class Reading(Protocol):
    """How the rows of a part are read; the recipe's DataPart is one."""

    format: Any
    system: str | None
    variables: Mapping[str, str]


def to_conversation(row: Row, part: Reading) -> Conversation | Dropped:
    """Read one row: its format, the part's system text where the row has none, the part's variables.

    Raises InputError if a text or a role has the wrong type, or a placeholder has no value.
    """
    messages = [message for message in FORMATS[part.format.kind].read(part.format, row) if not _empty_system(message)]
    if part.system and messages and messages[0].role != "system":
        messages.insert(0, Message("system", part.system))
    if part.variables:
        messages = [replace(message, content=filled(message.content, part.variables, row.where)) for message in messages]
    return judge(messages, row.where)


def judge(messages: Sequence[Message], where: str) -> Conversation | Dropped:
    """Cut questions that nobody answered off the end, and drop what holds nothing to learn."""
    last = max((index for index, message in enumerate(messages) if message.role == "assistant"), default=-1)
    kept, cut = tuple(messages[: last + 1]), len(messages) - last - 1
    reason = _untrainable(kept)
    if reason:
        return Dropped(where, reason)
    return Conversation(kept, where, f"cut {cut} unanswered turn{'s' if cut > 1 else ''} at the end" if cut else "")


def _untrainable(messages: tuple[Message, ...]) -> str:
    """Why these messages cannot be trained; empty if they can."""
    turns = [message for message in messages if message.role != "system"]
    if not turns:
        return "no answer"
    if turns[0].role == "assistant":
        return "begins with an answer: no question before it"
    blank = next((turn for turn in turns if not turn.content.strip()), None)
    if blank:
        return "empty question" if blank.role == "user" else "empty answer"
    if not any(turn.loss for turn in turns if turn.role == "assistant"):
        return "all labels are masked: no answer has loss"
    return ""


def _empty_system(message: Message) -> bool:
    return message.role == "system" and not message.content.strip()


def filled(text: str, variables: Mapping[str, str], where: str) -> str:
    """`text` with every `{{name}}` replaced by its value."""
    unknown = sorted({name for name in PLACEHOLDER.findall(text) if name not in variables})
    if unknown:
        what = f"the placeholder {{{{{unknown[0]}}}}} has no value."
        raise InputError(what, where, f"Add '{unknown[0]}' to the part's variables, which has: {', '.join(variables)}.")
    return PLACEHOLDER.sub(lambda found: variables[found[1]], text)
