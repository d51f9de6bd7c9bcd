"""From a row to the messages of a conversation. A new format is one function with `@row_format` in this file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from tunestation.data.readers import Row
from tunestation.errors import InputError

Role = Literal["system", "user", "assistant"]
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn."""

    role: Role
    content: str
    loss: bool = True
    """Has an effect on the role assistant: False keeps the answer as context and does not train it."""


Reader = Callable[[Any, Row], list[Message]]


@dataclass(frozen=True)
class RowFormat:
    """How rows of one kind are read."""

    columns: Callable[[Any], tuple[str, ...]]
    """The columns without which no row can be read, given the format's parameters."""
    read: Reader
    """(parameters, row) -> messages as they stand in the row. Raises InputError on a wrong type or role."""


FORMATS: dict[str, RowFormat] = {}
"""`kind` of the recipe's format -> how to read its rows."""


def row_format(kind: str, columns: Callable[[Any], tuple[str, ...]]) -> Callable[[Reader], Reader]:
    """Registers the decorated function as the reader of `kind`."""

    def register(read: Reader) -> Reader:
        FORMATS[kind] = RowFormat(columns, read)
        return read

    return register


def check_columns(rows: Iterable[Row], format: Any, name: str) -> None:
    """Raises InputError if a column that `format` reads is in no row of the file `name`."""
    present = list(dict.fromkeys(column for row in rows for column in row.values if column))
    missing = [column for column in FORMATS[format.kind].columns(format) if column not in present]
    if missing:
        wanted = ", ".join(f"'{column}'" for column in missing)
        what = f"the format '{format.kind}' reads the column {wanted}, but {name} has: {', '.join(present)}."
        raise InputError(what, name, "Name the columns of the file, or choose another format.")


@row_format("messages", columns=lambda params: ("messages",))
def _messages(params: Any, row: Row) -> list[Message]:
    """`{"messages": [{"role", "content"}]}`; an assistant message may carry `loss: false`."""
    turns = _list_of_objects(row.values.get("messages"), "messages", row.where)
    return [_message(turn, f"messages[{index}]", row.where) for index, turn in enumerate(turns)]


def _message(turn: dict, name: str, where: str) -> Message:
    role = turn.get("role")
    if role not in ROLES:
        raise InputError(f"{name} has the role {role!r}.", where, f"Known roles are {', '.join(ROLES)}.")
    return Message(role, _text(turn.get("content"), f"{name}.content", where), _flag(turn.get("loss"), f"{name}.loss", where))


@row_format("alpaca", columns=lambda params: ("instruction", "output"))
def _alpaca(params: Any, row: Row) -> list[Message]:
    """`{"instruction", "input", "output"}`, optionally `system`: instruction and input are joined by one newline.

    Unlike XTuner there is no newline after the instruction when the input is empty. The output `<nooutput>` of the
    original data set stands for no answer, as in XTuner.
    """
    system, instruction, extra, answer = (_column(row, name) for name in ("system", "instruction", "input", "output"))
    question = "\n".join(text for text in (instruction, extra) if text.strip())
    return _pair(system, question, "" if answer.strip() == "<nooutput>" else answer)


@row_format("conversation", columns=lambda params: ("conversation",))
def _conversation(params: Any, row: Row) -> list[Message]:
    """XTuner's turns `{"system", "input", "output"}`; `output_with_loss: false` keeps an answer as context only.

    XTuner takes an output without input for pre-training text; here such a row has an empty question.
    """
    turns = _list_of_objects(row.values.get("conversation"), "conversation", row.where)
    messages = []
    for index, turn in enumerate(turns):
        name = f"conversation[{index}]"
        system, question, answer = (_text(turn.get(key), f"{name}.{key}", row.where) for key in ("system", "input", "output"))
        loss = _flag(turn.get("output_with_loss"), f"{name}.output_with_loss", row.where)
        messages += _pair(system, question, answer, loss)
    if messages and messages[-1].role == "assistant" and not messages[-1].content.strip():
        messages.pop()  # the last turn is a question that nobody answered
    return messages


@row_format("columns", columns=lambda params: tuple(name for name in (params.input, params.output, params.system) if name))
def _columns(params: Any, row: Row) -> list[Message]:
    """One column asks, one answers, optionally one holds a system text."""
    system = _column(row, params.system) if params.system else ""
    return _pair(system, _column(row, params.input), _column(row, params.output))


def _pair(system: str, question: str, answer: str, loss: bool = True) -> list[Message]:
    first = [Message("system", system)] if system.strip() else []
    return [*first, Message("user", question), Message("assistant", answer, loss)]


def _column(row: Row, name: str) -> str:
    return _text(row.values.get(name), name, row.where)


def _text(value: Any, name: str, where: str) -> str:
    """A missing value and null are the empty text; anything else that is no text is the user's mistake."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{name} is {_kind(value)}, not a text.", where)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name} holds half a character (\\u{ord(value[error.start]):04x}).", where, "Mend the row's escapes.") from None
    return value


def _flag(value: Any, name: str, where: str) -> bool:
    if value is None or isinstance(value, bool):
        return value is not False
    raise InputError(f"{name} is {_kind(value)}, not true or false.", where)


def _list_of_objects(value: Any, name: str, where: str) -> list[dict]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise InputError(f"{name} is {_kind(value)}, not a list.", where)
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise InputError(f"{name}[{index}] is {_kind(item)}, not an object.", where)
    return value


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")
