"""The sources of a recipe, read into conversations: a stream, so that data larger than memory can be prepared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Annotated

from pydantic import Field

from tunestation.data.conversations import Conversation, Dropped, Reading, to_conversation
from tunestation.data.formats import FORMATS
from tunestation.data.formats.auto import left_over, recognise
from tunestation.data.mixing import Copies, counts_are_needed, mix
from tunestation.data.problems import Problems
from tunestation.data.readers import Row, read_rows
from tunestation.errors import InputError, Problem
from tunestation.pipeline.digest import file_digest
from tunestation.pipeline.volumes import Volumes
from tunestation.recipe.base import Part, Positive
from tunestation.recipe.data import ReadOptions
from tunestation.recipe.formats import Format, MessagesFormat
from tunestation.recipe.sources import Sha256

NOTHING = (None, "", [], {})
"""What an empty cell holds."""
HEAD = 50
"""Rows at the beginning of a file that show which columns it has."""
Outcome = Conversation | Dropped
Tell = Callable[[str], None]
"""Gets a line for people."""


class FileRef(Part):
    """One data file."""

    ref: Annotated[str, Field(pattern=r"^\w+:.+")]
    """Where it is, as `recipe:data/x.jsonl`."""
    sha256: Sha256 | None = None
    """Digest of the bytes that the key of the stage stands for; None is not checked."""

    @property
    def name(self) -> str:
        """The file in messages."""
        return self.ref.partition(":")[2]


class Generator(Part):
    """Rows of a built-in generator."""

    name: str
    seed: int
    count: int


class PartFiles(Part):
    """One source of rows and how to read them; the files of hub and url sources are in the manifest of `fetch`."""

    files: tuple[FileRef, ...] = ()
    generator: Generator | None = None
    read: ReadOptions = ReadOptions()
    format: Format
    system: str | None = None
    variables: Annotated[dict[str, str], Field(default_factory=dict)]
    limit: Positive | None = None
    repeat: Positive = 1
    weight: float | None = None


Table = tuple[str, Callable[[Problems], Iterator[Row]]]
"""A file or generator: its name, and a function that streams its rows and notes what is wrong."""


def collect(
    parts: Sequence[PartFiles],
    fetched: Sequence[Sequence[FileRef]],
    volumes: Volumes,
    seed: int,
    objective: str = "sft",
    tell: Tell = print,
) -> Iterator[Outcome]:
    """What became of every row, in the order of parts, files and rows; no more than a few rows are in memory.

    `fetched` holds, part by part, the files of the manifest; `seed` chooses rows where a part has a limit or a weight;
    `objective` is that of the recipe and decides what `format: auto` looks for; what it recognised goes to `tell`.
    Raises InputError with the problems of all files when all have been read: what came before must not be used then.
    """
    problems: list[Problem] = []
    tables = [list(_tables(part, files, volumes)) for part, files in zip(parts, fetched, strict=True)]
    for place, (part, copies) in enumerate(zip(parts, _copies(parts, tables, seed), strict=True)):
        index = 0
        for name, read in tables[place]:
            found = Problems(name)
            for outcome in outcomes(read(found), part, name, found, objective, tell):
                blank = isinstance(outcome, Dropped) and outcome.fate == "blank"
                yield _counted(outcome, 1 if blank else copies.of(index))
                index += not blank
            problems += found.told()
    if problems:
        raise InputError(problems=problems)


def _copies(parts: Sequence[PartFiles], tables: Sequence[Sequence[Table]], seed: int) -> list[Copies]:
    if not counts_are_needed(parts):
        return [Copies(part.repeat) for part in parts]
    rows = [sum(bool(row.values) for name, read in files for row in read(Problems(name))) for files in tables]
    return mix(parts, rows, seed)


def _counted(outcome: Outcome, copies: int) -> Outcome:
    if not copies:
        return Dropped(outcome.where, "not among the rows that the source's limit takes", "left out")
    return outcome if isinstance(outcome, Dropped) else replace(outcome, copies=copies)


def _tables(part: PartFiles, fetched: Sequence[FileRef], volumes: Volumes) -> Iterator[Table]:
    if part.generator:
        yield part.generator.name, lambda problems: iter(generated(part.generator.name, part.generator.seed, part.generator.count))
    for file in part.files or fetched:
        yield file.name, lambda problems, file=file: _checked(file, part.read, volumes, problems)


def _checked(file: FileRef, options: ReadOptions, volumes: Volumes, problems: Problems) -> Iterator[Row]:
    path = volumes.path(file.ref)
    if file.sha256 and path.is_file() and file_digest(path) != file.sha256:
        problems.add(Problem("the file changed while the recipe was running.", file.name, "Run the same command again."))
        return
    yield from read_rows(path, file.name, problems, options)


def generated(name: str, seed: int, count: int) -> list[Row]:
    """The rows of the built-in generator `name`. Raises InputError if there is none of that name."""
    from tunestation.starter.generator import GENERATORS

    if name not in GENERATORS:
        raise InputError(f"there is no generator '{name}'.", "source", f"Choose from: {', '.join(GENERATORS)}.")
    return [Row(values, f"{name}:{number}") for number, values in enumerate(GENERATORS[name](seed, count), start=1)]


def outcomes(
    rows: Iterable[Row], part: Part, name: str, problems: Problems, objective: str = "sft", tell: Tell = print
) -> Iterator[Outcome]:
    """What becomes of each row of the file `name`; rows of a wrong type and missing columns go to `problems`.

    `part` is a DataPart or PartFiles. What `format: auto` recognised goes to `tell`, which gets one line a file.
    """
    head, rows = peek(rows)
    try:
        reading = _resolved(part, head, objective, name, tell)
    except InputError as error:
        problems.add(*error.problems)
        return
    pairs, empty, blank = 0, set(FORMATS[reading.format.kind].columns(reading.format)), True
    for row in rows:
        empty -= {column for column in empty if row.values.get(column) not in NOTHING}
        blank = blank and not row.values
        try:
            outcome = to_conversation(row, reading)
        except InputError as error:
            problems.add(*error.problems)
            continue
        pairs += isinstance(outcome, Conversation) and bool(outcome.rejected)
        yield outcome
    if not blank:
        remedy = "Name the column that holds the text, or mend the file."
        problems.add(*(Problem(f"the column '{column}' is empty in every row.", name, remedy) for column in sorted(empty)))
    if pairs:
        what = f"{pairs} preference pairs were read and checked, but there is no training on pairs yet (DPO, ORPO): it comes later."
        problems.add(Problem(what, name, "Use rows with one answer each."))


def _resolved(part: Part, head: Sequence[Row], objective: str, name: str, tell: Tell) -> Reading:
    """The part with the format that its first rows have. Raises InputError if that cannot be told, or columns are missing."""
    if part.format.kind != "auto":
        absent = missing_columns(head, part.format)
        if absent:
            raise _missing(absent, part.format.kind, name, columns(head))
        return part
    if not columns(head):  # blank rows alone: told by the reader
        return part.model_copy(update={"format": MessagesFormat(kind="messages")})
    found = recognise(head, objective, name)
    rest = left_over(head, found)
    tell(f"{name}: read as {found}{'; not read: ' if rest else ''}{', '.join(rest)}.")
    return part.model_copy(update={"format": found.format})


def peek(rows: Iterable[Row]) -> tuple[list[Row], Iterator[Row]]:
    """The first rows, and all rows again."""
    stream = iter(rows)
    head = list(islice(stream, HEAD))
    return head, chain(head, stream)


def columns(rows: Iterable[Row]) -> list[str]:
    """Every column that the rows have, in order."""
    return list(dict.fromkeys(column for row in rows for column in row.values if column))


def missing_columns(head: Sequence[Row], format: Part) -> list[str]:
    """Columns that `format` reads and that none of the first rows has; `auto` reads what there is."""
    present = columns(head)
    if not present or format.kind == "auto":
        return []
    return [column for column in FORMATS[format.kind].columns(format) if column not in present]


def _missing(absent: Sequence[str], kind: str, name: str, present: Sequence[str]) -> InputError:
    wanted = ", ".join(f"'{column}'" for column in absent)
    what = f"the format '{kind}' reads the column {wanted}, but {name} has: {', '.join(present)}."
    return InputError(what, name, "Name the columns of the file, or choose another format.")
