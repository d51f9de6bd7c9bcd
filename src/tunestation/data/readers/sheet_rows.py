"""Spreadsheets: the first row names the columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunestation.data.problems import Problems
from tunestation.data.readers.row import Row
from tunestation.data.readers.table_rows import header_of
from tunestation.errors import Problem
from tunestation.recipe.data import ReadOptions


def sheet_rows(path: Path, name: str, options: ReadOptions, problems: Problems) -> Iterator[Row]:
    """The first sheet. Numbers become their digits; blank rows at the end are no rows."""
    import openpyxl

    try:
        workbook = openpyxl.load_workbook(path, read_only=True, data_only=True)
        cells = list(workbook.worksheets[0].iter_rows(values_only=True))
        workbook.close()
    except Exception as error:  # openpyxl lets errors of zipfile and of several XML parsers through
        problems.add(Problem(f"is not an Excel file that can be read: {error}.", name))
        return
    while cells and _blank(cells[-1]):
        cells.pop()
    if not cells:
        return
    header = header_of(cells[0], f"{name}:row 1", problems)
    for number, values in enumerate(cells[1:], start=1):
        yield Row(_named(header, values), f"{name}:row {number + 1}", name, number)


def _blank(values: tuple) -> bool:
    return all(value is None or value == "" for value in values)


def _named(header: list[str], values: tuple) -> dict[str, Any]:
    if _blank(values):
        return {}
    return {column: _cell(value) for column, value in zip(header, values, strict=False) if column}


def _cell(value: Any) -> Any:
    """A spreadsheet stores the answer 42 as a number; a row wants its text."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if number else value
