"""One small reader for each kind of file. Rows come as a stream, so that a file larger than memory can be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath

from tunestation.data.problems import Problems
from tunestation.data.readers.arrow_files import arrow_rows, parquet_rows
from tunestation.data.readers.json_files import json_rows
from tunestation.data.readers.row import Row, Unreadable
from tunestation.data.readers.sheet_files import sheet_rows
from tunestation.data.readers.table_files import csv_rows, tsv_rows
from tunestation.data.readers.text import COMPRESSIONS, plain_suffix
from tunestation.data.readers.text_files import text_rows
from tunestation.errors import Problem
from tunestation.recipe.data import ReadOptions

__all__ = ["READERS", "Row", "Unreadable", "read_rows"]

READERS = {
    ".json": json_rows,
    ".jsonl": json_rows,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".xlsx": sheet_rows,
    ".parquet": parquet_rows,
    ".arrow": arrow_rows,
    ".txt": text_rows,
}
"""Suffix -> reader(path, name, options, problems), which yields rows and notes what is wrong. Each also behind `.gz` and `.zst`."""


def read_rows(path: Path, name: str, problems: Problems, options: ReadOptions | None = None) -> Iterator[Row]:
    """The rows of the file at `path`, called `name` in messages, one by one and in the order of the file.

    Never raises: what is wrong with the file (missing, empty, not UTF-8, malformed, rows that are no objects) goes to
    `problems`, in the order of the file, and reading goes on where that makes sense.
    """
    if not path.is_file():
        problems.add(Problem("the file does not exist.", name, "Check the path; it is looked up beside the recipe and in TUNE_DATASETS."))
        return
    reader = READERS.get(plain_suffix(path))
    if reader is None:
        problems.add(unknown_kind(name))
        return
    empty = True
    try:
        for row in reader(path, name, options or ReadOptions(), problems):
            empty = empty and not row.values
            yield row
    except (OSError, UnicodeError) as error:  # also a damaged gzip or zstd stream, and a broken pair in UTF-16
        problems.add(Problem(f"cannot be read: {error}.", name, "Mend the file, or fetch it again."))
    if empty and not problems:
        problems.add(Problem("the file is empty: it holds no rows.", name))


def unknown_kind(name: str) -> Problem:
    """The problem of a file whose suffix no reader goes by."""
    remedy = f"Use one of: {', '.join(READERS)}; each may be compressed ({', '.join(COMPRESSIONS)})."
    suffix = plain_suffix(PurePath(name))
    return Problem(f"files of kind '{suffix}' cannot be read." if suffix else "the name has no ending that tells its kind.", name, remedy)
