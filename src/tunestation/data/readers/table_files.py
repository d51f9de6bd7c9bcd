"""CSV and TSV: the first line names the columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunestation.data.problems import Problems
from tunestation.data.readers.row import Row
from tunestation.data.readers.text import lines
from tunestation.errors import Problem
from tunestation.recipe.data import ReadOptions


def csv_rows(path: Path, name: str, options: ReadOptions, problems: Problems) -> Iterator[Row]:
    """Fields between commas."""
    return _rows(path, name, options, problems, ",")


def tsv_rows(path: Path, name: str, options: ReadOptions, problems: Problems) -> Iterator[Row]:
    """Fields between tabs."""
    return _rows(path, name, options, problems, "\t")


def _rows(path: Path, name: str, options: ReadOptions, problems: Problems, delimiter: str) -> Iterator[Row]:
    """One row a record. Strict: an unclosed quote would otherwise swallow the rest of the file."""
    csv.field_size_limit(2**31 - 1)
    records = csv.reader(lines(path, name, options, problems, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for record in records:
            where = f"{name}:{line}"
            if record and not header:
                header = header_of(record, where, problems)
            elif record:
                yield from _record(header, record, where, problems)
            line = records.line_num + 1
    except csv.Error as error:
        problems.add(Problem(f"malformed {'TSV' if delimiter != ',' else 'CSV'}: {error}.", f"{name}:{line}"))


def _record(header: list[str], record: list[str], where: str, problems: Problems) -> Iterator[Row]:
    if len(record) != len(header):
        problems.add(Problem(f"the row has {len(record)} fields, the first line names {len(header)} columns.", where))
    elif any(record):
        yield Row(dict(zip(header, record, strict=True)), where)
    else:
        yield Row({}, where)


def header_of(cells: Sequence[Any], where: str, problems: Problems) -> list[str]:
    """The names of the columns; an empty cell names none."""
    names = ["" if cell is None else str(cell) for cell in cells]
    twice = sorted({column for column in names if column and names.count(column) > 1})
    if twice:
        problems.add(Problem(f"two columns have the same name: {', '.join(twice)}.", where, "Rename one."))
    return names
