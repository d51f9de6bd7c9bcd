"""Preference pairs: a prompt, the answer that is wanted, and one that is not."""

from __future__ import annotations

from typing import Any

from tunestation.data.formats.chats import message
from tunestation.data.formats.message import Draft, Message
from tunestation.data.formats.registry import row_format
from tunestation.data.formats.values import Unusable, column, objects, text
from tunestation.data.readers.row import Row
from tunestation.errors import InputError


@row_format("preference", columns=lambda params: (params.chosen, params.rejected))
def _preference(params: Any, row: Row) -> Draft:
    """Texts or lists of messages. Lists without a prompt column begin with the same prompt and differ in their last message."""
    system = column(row, params.system) if params.system else ""
    prompt = _turns(row, params.prompt, "user")
    chosen, rejected = (_turns(row, name, "assistant") for name in (params.chosen, params.rejected))
    shared = next((n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected)))
    if not chosen or not rejected or shared == len(chosen) == len(rejected):
        raise Unusable("chosen and rejected are the same" if chosen == rejected and chosen else "chosen or rejected is missing")
    if chosen[:shared] != prompt:
        prompt = [*prompt, *chosen[:shared]]
    good, bad = chosen[shared:], rejected[shared:]
    _are_answers(good, params.chosen, row)
    _are_answers(bad, params.rejected, row)
    first = [Message("system", system)] if system.strip() else []
    return Draft([*first, *prompt, *good], rejected=tuple(bad))


def _turns(row: Row, name: str, role: str) -> list[Message]:
    """The messages in the column `name`: a list of them, or a text as one of `role`; empty if there is nothing in it."""
    value = row.values.get(name)
    if isinstance(value, list):
        return [message(turn, f"{name}[{n}]", row.where) for n, turn in enumerate(objects(value, name, row.where))]
    said = text(value, name, row.where)
    return [Message(role, said)] if said.strip() else []  # type: ignore[arg-type]


def _are_answers(turns: list[Message], name: str, row: Row) -> None:
    if len(turns) != 1 or turns[0].role != "assistant":
        roles = ", ".join(turn.role for turn in turns) or "nothing"
        raise InputError(f"after the common prompt {name} holds {roles}, not one answer.", row.where, "A pair shares all but one answer.")
    if not turns[0].content.strip() and not turns[0].tool_calls:
        raise Unusable(f"the answer in {name} is empty")
