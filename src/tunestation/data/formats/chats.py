"""Rows that hold a list of turns."""

from __future__ import annotations

from typing import Any

from tunestation.data.formats.message import ROLES, Draft, Message
from tunestation.data.formats.registry import row_format
from tunestation.data.formats.tables import pair
from tunestation.data.formats.values import flag, objects, text
from tunestation.data.readers.row import Row
from tunestation.errors import InputError


@row_format("messages", columns=lambda params: ("messages",))
def _messages(params: Any, row: Row) -> Draft:
    """`{"messages": [{"role", "content"}]}`; an assistant message may carry `loss: false`."""
    turns = objects(row.values.get("messages"), "messages", row.where)
    return Draft([_message(turn, f"messages[{index}]", row.where) for index, turn in enumerate(turns)])


def _message(turn: dict, name: str, where: str) -> Message:
    role = turn.get("role")
    if role not in ROLES:
        raise InputError(f"{name} has the role {role!r}.", where, f"Known roles are {', '.join(ROLES)}.")
    return Message(role, text(turn.get("content"), f"{name}.content", where), flag(turn.get("loss"), f"{name}.loss", where))


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
