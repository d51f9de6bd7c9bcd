"""`format: auto`: the format of a file, recognised by its columns; where several fit, the user is asked and nothing is guessed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunestation.data.formats.tables import TABLES
from tunestation.data.readers.row import Row
from tunestation.errors import InputError
from tunestation.recipe.base import Part
from tunestation.recipe.formats import (
    ColumnsFormat,
    ConversationFormat,
    DialogueFormat,
    MessagesFormat,
    PreferenceFormat,
    ShareGptFormat,
    TableFormat,
    TextFormat,
)

PAIRS = (
    ("question", "answer"),
    ("question", "response"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("instruction", "response"),
    ("query", "response"),
    ("input", "output"),
    ("q", "a"),
)
"""Columns that usually hold a question and its answer."""
ASIDES = ("context", "input", "history")
"""Columns that usually belong to the question: a pair that would leave one unread is not chosen by itself."""
SYSTEMS = ("system", "system_prompt")
PROMPTS = ("prompt", "question", "instruction", "input")
DOCUMENTS = ("text", "content", "document")


@dataclass(frozen=True)
class Candidate:
    """A format that fits, and the columns that it would read."""

    format: Part
    reads: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.format.kind} ({', '.join(self.reads)})"  # type: ignore[attr-defined]


def recognise(head: Sequence[Row], objective: str, name: str) -> Candidate:
    """The one format that fits the first rows of the file `name`. Raises InputError naming the choices if none or several do.

    A format that would read all that another reads, and more, goes before it.
    """
    present = list(dict.fromkeys(column for row in head for column in row.values if column))
    found = list(_documents(present) if objective == "pretrain" else _conversations(head, present))
    best = [one for one in found if not any(set(one.reads) < set(other.reads) for other in found)]
    if len(best) == 1:
        return best[0]
    if best:
        what = f"its columns fit several formats: {'; '.join(map(str, best))}."
        raise InputError(what, name, f"Name one, as 'format: {_written(best[0].format)}'.")
    raise InputError(f"no format is known by its columns: {', '.join(present)}.", name, _by_name(present, objective))


def _documents(present: Sequence[str]) -> Iterator[Candidate]:
    for column in DOCUMENTS:
        if column in present:
            yield Candidate(TextFormat(kind="text", column=column), (column,))


def _conversations(head: Sequence[Row], present: Sequence[str]) -> Iterator[Candidate]:
    yield from _turns(head, present)
    yield from _tables(present)
    yield from _pairs(present)
    if {"chosen", "rejected"} <= set(present):
        prompt = next((column for column in PROMPTS if column in present), "prompt")
        system = next((column for column in SYSTEMS if column in present), None)
        reads = tuple(column for column in (system, prompt, "chosen", "rejected") if column in present)
        yield Candidate(PreferenceFormat(kind="preference", prompt=prompt, system=system), reads)
    if str(_first(head, "text")).lstrip().startswith("### Human:"):
        yield Candidate(DialogueFormat(kind="oasst1"), ("text",))
    if isinstance(_first(head, "chat"), dict) and "meta_instruction" in present:
        yield Candidate(DialogueFormat(kind="moss"), ("meta_instruction", "chat"))


def _turns(head: Sequence[Row], present: Sequence[str]) -> Iterator[Candidate]:
    """Lists of turns, told apart by the keys of the first one."""
    for column in ("messages", "conversations", "conversation"):
        value = _first(head, column)
        keys = set(value[0]) if isinstance(value, list) and value and isinstance(value[0], dict) else set()
        more = tuple(name for name in ("system", "tools") if name in present)
        if {"role", "content"} <= keys or {"role", "tool_calls"} <= keys:
            yield Candidate(MessagesFormat(kind="messages", column=column), (column, *(name for name in more if name == "tools")))
        elif {"from", "value"} <= keys and "image" in present:
            yield Candidate(DialogueFormat(kind="llava"), (column, "image"))
        elif {"from", "value"} <= keys:
            yield Candidate(ShareGptFormat(kind="sharegpt", column=column), (column, *more))
        elif "output" in keys and column == "conversation":
            yield Candidate(ConversationFormat(kind="conversation"), (column,))


def _tables(present: Sequence[str]) -> Iterator[Candidate]:
    for kind in ("alpaca", "alpaca_zh", "prompt_completion"):
        table = TABLES[kind]
        if set(table.columns) <= set(present):
            names = (table.system_column, *table.question, table.answer, "history")
            yield Candidate(TableFormat(kind=kind), tuple(name for name in names if name in present))  # type: ignore[arg-type]


def _pairs(present: Sequence[str]) -> Iterator[Candidate]:
    for asks, answers in PAIRS:
        unread = [column for column in ASIDES if column in present and column != asks]
        if asks in present and answers in present and not unread:
            system = next((column for column in SYSTEMS if column in present), None)
            format = ColumnsFormat(kind="columns", input=asks, output=answers, system=system)
            yield Candidate(format, (*([system] if system else []), asks, answers))


def _first(head: Sequence[Row], column: str) -> object:
    """The first value of a column that is something."""
    return next((row.values[column] for row in head if row.values.get(column)), None)


def _by_name(present: Sequence[str], objective: str) -> str:
    if objective == "pretrain":
        return "Name the column with the document, as 'format: {kind: text, column: ...}'."
    named = [kind for kind, table in TABLES.items() if set(table.columns) <= set(present)]
    known = f"These read such columns: {', '.join(named)}. " if named else ""
    return f"{known}Name one, or the columns, as 'format: {{kind: columns, input: ..., output: ...}}'."


def _written(format: Part) -> str:
    fields = ", ".join(f"{name}: {value}" for name, value in format.model_dump(exclude_defaults=True, exclude_none=True).items())
    return f"{{{fields}}}"


def left_over(head: Sequence[Row], candidate: Candidate) -> list[str]:
    """Columns that the recognised format does not read."""
    return list(dict.fromkeys(column for row in head for column in row.values if column and column not in candidate.reads))
