"""Rows that hold a list of turns: OpenAI's messages, ShareGPT's conversations, XTuner's conversation."""

from __future__ import annotations

from typing import Any

from tunestation.data.formats.message import ROLES, Draft, Message
from tunestation.data.formats.registry import row_format
from tunestation.data.formats.tables import pair
from tunestation.data.formats.tools import tool_calls, tools
from tunestation.data.formats.values import Unusable, flag, objects, text
from tunestation.data.readers.row import Row
from tunestation.errors import InputError

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
"""`from` of a ShareGPT turn -> role."""


@row_format("messages", "openai", columns=lambda params: (params.column,))
def _messages(params: Any, row: Row) -> Draft:
    """`{"messages": [{"role", "content"}]}`, optionally `tools`; every turn is kept as it stands."""
    turns = objects(row.values.get(params.column), params.column, row.where)
    return Draft([message(turn, f"{params.column}[{index}]", row.where) for index, turn in enumerate(turns)], tools=tools(row))


def message(turn: dict, name: str, where: str) -> Message:
    """One message of OpenAI's chat API. The older `function` role and `function_call` are read as tool and tool call."""
    role = {"function": "tool"}.get(turn.get("role"), turn.get("role")) if isinstance(turn.get("role"), str) else turn.get("role")
    if role not in ROLES:
        raise InputError(f"{name} has the role {role!r}.", where, f"Known roles are {', '.join(ROLES)}.")
    return Message(
        role,
        _content(turn.get("content"), f"{name}.content", where),
        loss(turn, name, where),
        text(turn.get("name"), f"{name}.name", where),
        tool_calls(turn, name, where),
        text(turn.get("tool_call_id"), f"{name}.tool_call_id", where),
        text(turn.get("reasoning_content"), f"{name}.reasoning_content", where),
    )


def _content(value: Any, name: str, where: str) -> str:
    """A text, or a list of parts of which every one is a text."""
    if not isinstance(value, list):
        return text(value, name, where)
    parts = objects(value, name, where)
    other = next((part.get("type") for part in parts if part.get("type") != "text"), None)
    if other:
        raise Unusable(f"{name} holds a part of type {other!r}; only texts can be trained")
    return "".join(text(part.get("text"), f"{name}[{index}].text", where) for index, part in enumerate(parts))


def loss(turn: dict, name: str, where: str) -> bool:
    """Whether the turn is trained: `loss` is true or false, OpenAI's `weight` 1 or 0; together they must agree."""
    weight = turn.get("weight")
    if weight not in (None, 0, 1) or isinstance(weight, bool):
        raise InputError(f"{name}.weight is {weight!r}.", where, "A message's weight is 0 (context only) or 1 (trained).")
    trained = flag(turn.get("loss"), f"{name}.loss", where)
    if weight is not None and turn.get("loss") is not None and trained != bool(weight):
        raise InputError(f"{name}.loss and {name}.weight say different things.", where, "Keep one of them.")
    return trained and weight != 0


@row_format("sharegpt", "wizardlm", columns=lambda params: (params.column,))
def _sharegpt(params: Any, row: Row) -> Draft:
    """`{"conversations": [{"from", "value"}]}`, optionally `system` and `tools`; every turn is kept as it stands."""
    system = text(row.values.get("system"), "system", row.where)
    first = [Message("system", system)] if system.strip() else []
    turns = objects(row.values.get(params.column), params.column, row.where)
    return Draft([*first, *(_turn(turn, f"{params.column}[{index}]", row.where) for index, turn in enumerate(turns))], tools=tools(row))


def _turn(turn: dict, name: str, where: str) -> Message:
    speaker = turn.get("from")
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise InputError(f"{name} is from {speaker!r}.", where, f"Known speakers are {', '.join(SPEAKERS)}.")
    value, trained = text(turn.get("value"), f"{name}.value", where), loss(turn, name, where)
    if speaker == "function_call":
        return Message(role, "", trained, tool_calls=tool_calls({"function_call": value}, name, where))
    return Message(role, value, trained)


@row_format("conversation", columns=lambda params: ("conversation",))
def _conversation(params: Any, row: Row) -> Draft:
    """XTuner's turns `{"system", "input", "output"}`; `output_with_loss: false` keeps an answer as context only.

    XTuner takes an output without input for pre-training text; here such a row has an empty question.
    """
    messages: list[Message] = []
    for index, turn in enumerate(objects(row.values.get("conversation"), "conversation", row.where)):
        name = f"conversation[{index}]"
        system, question, answer = (text(turn.get(key), f"{name}.{key}", row.where) for key in ("system", "input", "output"))
        messages += pair(system, question, answer, flag(turn.get("output_with_loss"), f"{name}.output_with_loss", row.where))
    if messages and messages[-1].role == "assistant" and not messages[-1].content.strip():
        messages.pop()  # the last turn is a question that nobody answered
    return Draft(messages)


@row_format("llava", "llava_image_only", columns=lambda params: ("conversations",))
def _llava(params: Any, row: Row) -> Draft:
    """ShareGPT's turns about a picture. Pictures cannot be trained: only rows without one are used."""
    if row.values.get("image") is not None:
        raise Unusable("the row is about an image; only texts can be trained")
    turns = objects(row.values.get("conversations"), "conversations", row.where)
    if any("<image>" in str(turn.get("value")) for turn in turns):
        raise Unusable("the row speaks of an <image>; only texts can be trained")
    return Draft([_turn(turn, f"conversations[{index}]", row.where) for index, turn in enumerate(turns)])
