"""One small reader for each kind of file. Rows come as a stream, so that a file larger than memory can be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunestation.data.problems import Problems
from tunestation.data.readers.json_rows import json_rows
from tunestation.data.readers.row import Row
from tunestation.data.readers.sheet_rows import sheet_rows
from tunestation.data.readers.table_rows import table_rows
from tunestation.errors import Problem
from tunestation.recipe.data import ReadOptions

__all__ = ["READERS", "Row", "read_rows"]

READERS = {
    ".json": json_rows,
    ".jsonl": json_rows,
    ".csv": table_rows,
    ".xlsx": sheet_rows,
}
"""Suffix -> reader(path, name, options, problems), which yields rows and notes what is wrong."""


def read_rows(path: Path, name: str, problems: Problems, options: ReadOptions | None = None) -> Iterator[Row]:
    """The rows of the file at `path`, called `name` in messages, one by one and in the order of the file.

    Never raises: what is wrong with the file (missing, empty, not UTF-8, malformed, rows that are no objects) goes to
    `problems`, in the order of the file, and reading goes on where that makes sense.
    """
    if not path.is_file():
        problems.add(Problem("the file does not exist.", name, "Check the path; it is looked up beside the recipe and in TUNE_DATASETS."))
        return
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        problems.add(Problem(f"files of kind '{path.suffix}' cannot be read.", name, f"Use one of: {', '.join(READERS)}."))
        return
    empty = True
    for row in reader(path, name, options or ReadOptions(), problems):
        empty = empty and not row.values
        yield row
    if empty and not problems:
        problems.add(Problem("the file is empty: it holds no rows.", name))
