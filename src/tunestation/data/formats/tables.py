"""Tables: some columns ask, one answers."""

from __future__ import annotations

from typing import Any

from tunestation.data.formats.message import Draft, Message
from tunestation.data.formats.registry import row_format
from tunestation.data.formats.values import column
from tunestation.data.readers.row import Row


@row_format("alpaca", columns=lambda params: ("instruction", "output"))
def _alpaca(params: Any, row: Row) -> Draft:
    """`{"instruction", "input", "output"}`, optionally `system`: instruction and input are joined by one newline.

    Unlike XTuner there is no newline after the instruction when the input is empty. The output `<nooutput>` of the
    original data set stands for no answer, as in XTuner.
    """
    system, instruction, extra, answer = (column(row, name) for name in ("system", "instruction", "input", "output"))
    question = "\n".join(text for text in (instruction, extra) if text.strip())
    return Draft(pair(system, question, "" if answer.strip() == "<nooutput>" else answer))


@row_format("columns", columns=lambda params: tuple(name for name in (params.input, params.output, params.system) if name))
def _columns(params: Any, row: Row) -> Draft:
    """One column asks, one answers, optionally one holds a system text."""
    system = column(row, params.system) if params.system else ""
    return Draft(pair(system, column(row, params.input), column(row, params.output)))


def pair(system: str, question: str, answer: str, loss: bool = True) -> list[Message]:
    """A question and its answer, after a system text if there is one."""
    first = [Message("system", system)] if system.strip() else []
    return [*first, Message("user", question), Message("assistant", answer, loss)]
