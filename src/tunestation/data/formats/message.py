"""What a row says: messages, or a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES = get_args(Role)
INSTRUCTIONS = ("system", "developer")
"""Roles that say how to answer, before anything is asked."""


@dataclass(frozen=True)
class Message:
    """One turn, in the form of OpenAI's chat API."""

    role: Role
    content: str
    """The text; may be empty beside tool calls."""
    loss: bool = True
    """Has an effect on the role assistant: False keeps the answer as context and does not train it."""
    name: str = ""
    """Who speaks, or on the role tool which tool answers; empty for most."""
    tool_calls: tuple[dict[str, Any], ...] = ()
    """On the role assistant `{"type": "function", "function": {"name": ..., "arguments": {...}}}`, arguments as an object."""
    tool_call_id: str = ""
    """On the role tool: the call that it answers."""
    reasoning_content: str = ""
    """On the role assistant: what it thought before it answered, for templates that write it."""

    def turn(self) -> dict[str, Any]:
        """What `apply_chat_template` reads: role and content, and of the rest what is there."""
        rest = {"name": self.name, "tool_calls": list(self.tool_calls), "tool_call_id": self.tool_call_id}
        rest |= {"reasoning_content": self.reasoning_content}
        return {"role": self.role, "content": self.content} | {key: value for key, value in rest.items() if value}


@dataclass(frozen=True)
class Draft:
    """What a format makes of one row, before it is judged: messages, or a text to continue."""

    messages: Sequence[Message] = ()
    text: str | None = None
    """A document for pre-training; the messages are empty then."""
    tools: tuple[dict[str, Any], ...] = ()
    """JSON schemas of the tools that the conversation may call, as `apply_chat_template(tools=...)` takes them."""
    rejected: tuple[Message, ...] = ()
    """Preference pairs alone: the turns that are not wanted in place of the last of `messages`."""
