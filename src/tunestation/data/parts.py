"""The parts of the data, read into conversations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from tunestation.data.conversations import Conversation, Dropped, Reading, to_conversation
from tunestation.data.formats import check_columns
from tunestation.data.ledger import Ledger
from tunestation.data.problems import Problems
from tunestation.data.readers import Row, read_rows
from tunestation.errors import InputError
from tunestation.pipeline.digest import file_digest
from tunestation.pipeline.volumes import Volumes
from tunestation.recipe.base import Part, Positive
from tunestation.recipe.data import Format
from tunestation.recipe.sources import Sha256


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
    format: Format
    system: str | None = None
    variables: Annotated[dict[str, str], Field(default_factory=dict)]
    repeat: Positive = 1


@dataclass(frozen=True)
class Collected:
    """What the parts hold."""

    rows: int
    """Rows read; blank ones are not counted."""
    conversations: list[tuple[Conversation, int]]
    """Each with its part's `repeat`, in the order of parts, files and rows."""


def collect(parts: Sequence[PartFiles], fetched: Sequence[Sequence[FileRef]], volumes: Volumes, ledger: Ledger) -> Collected:
    """Read all rows. `fetched` holds, part by part, the files of the manifest; the ledger names what is dropped.

    Raises InputError with the problems of all files.
    """
    problems: list = []
    found: list[tuple[Conversation, int]] = []
    rows = 0
    for part, files in zip(parts, fetched, strict=True):
        for name, read in _tables(part, files, volumes):
            try:
                table = without_blanks(read(), ledger)
                check_columns(table, part.format, name)
                rows += len(table)
                found += ((conversation, part.repeat) for conversation in conversations(table, part, name, ledger))
            except InputError as error:
                problems += error.problems
    if problems:
        raise InputError(problems=problems)
    return Collected(rows, found)


def _tables(part: PartFiles, fetched: Sequence[FileRef], volumes: Volumes) -> Iterator[tuple]:
    """(name, function that reads the rows) of each file, or of the generator."""
    if part.generator:
        yield part.generator.name, lambda: generated(part.generator.name, part.generator.seed, part.generator.count)
    for file in part.files or fetched:
        yield file.name, lambda file=file: _checked(file, volumes)


def _checked(file: FileRef, volumes: Volumes) -> list[Row]:
    path = volumes.path(file.ref)
    if file.sha256 and path.is_file() and file_digest(path) != file.sha256:
        raise InputError("the file changed while the recipe was running.", file.name, "Run the same command again.")
    return read_rows(path, file.name)


def generated(name: str, seed: int, count: int) -> list[Row]:
    """The rows of the built-in generator `name`. Raises InputError if there is none of that name."""
    from tunestation.starter.generator import GENERATORS

    if name not in GENERATORS:
        raise InputError(f"there is no generator '{name}'.", "source", f"Choose from: {', '.join(GENERATORS)}.")
    return [Row(values, f"{name}:{number}") for number, values in enumerate(GENERATORS[name](seed, count), start=1)]


def without_blanks(rows: list[Row], ledger: Ledger) -> list[Row]:
    """`rows` without the blank ones, which the ledger names."""
    for row in rows:
        if not row.values:
            ledger.note("blank", row.where, "the row is blank")
    return [row for row in rows if row.values]


def conversations(rows: Sequence[Row], part: Reading, name: str, ledger: Ledger) -> list[Conversation]:
    """What can be learned from the rows of the file `name`; the ledger names the rest. Raises InputError with every wrong row."""
    problems = Problems(name)
    found = []
    for row in rows:
        try:
            outcome = to_conversation(row, part)
        except InputError as error:
            problems.add(*error.problems)
            continue
        if isinstance(outcome, Dropped):
            ledger.note("dropped", outcome.where, outcome.reason)
            continue
        if outcome.repaired:
            ledger.note("repaired", outcome.where, outcome.repaired)
        found.append(outcome)
    problems.raise_if_any()
    return found
