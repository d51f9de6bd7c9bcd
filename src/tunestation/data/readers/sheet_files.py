"""Spreadsheets: the first row names the columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunestation.data.problems import Problems
from tunestation.data.readers.row import Row, Unreadable
from tunestation.data.readers.table_files import header_of
from tunestation.data.readers.text import whole_file
from tunestation.errors import InputError
from tunestation.recipe.data import ReadOptions

if TYPE_CHECKING:
    from openpyxl import Workbook
    from openpyxl.worksheet.worksheet import Worksheet


def sheet_rows(path: Path, name: str, options: ReadOptions, problems: Problems) -> Iterator[Row]:
    """The rows of one sheet. Numbers become their digits; blank rows at the end are no rows.

    A formula counts with the value that was stored when the file was last calculated. A cell that is merged into
    another, shows an error, or holds a formula without a stored value, is Unreadable.
    """
    try:
        with whole_file(path) as whole:
            cells = _cells(whole, name, options.sheet)
    except InputError as error:
        problems.add(*error.problems)
        return
    while cells and _blank(cells[-1]):
        cells.pop()
    if not cells:
        return
    header = header_of([None if isinstance(cell, Unreadable) else cell for cell in cells[0]], f"{name}:row 1", problems)
    for number, values in enumerate(cells[1:], start=2):
        yield Row(_named(header, values), f"{name}:row {number}")


def _cells(path: Path, name: str, sheet: str | None) -> list[list[Any]]:
    """Every cell, row by row, as a text, another value, Unreadable, or None."""
    written = _sheet(_open(path, name, values=False), name, sheet)
    cells = [[_cell(cell.value) for cell in row] for row in written.iter_rows()]
    formulas = [cell for row in written.iter_rows() for cell in row if cell.data_type == "f"]
    stored = _sheet(_open(path, name, values=True), name, sheet) if formulas else written
    for cell in formulas:
        cells[cell.row - 1][cell.column - 1] = _stored(cell.coordinate, stored[cell.coordinate].value)
    for row in stored.iter_rows():
        for cell in row:
            if cell.data_type == "e":
                cells[cell.row - 1][cell.column - 1] = _error(cell.coordinate, cell.value)
    for area in written.merged_cells.ranges:
        first, *others = area.cells
        for row, column in others if written.cell(*first).value is not None else ():
            cells[row - 1][column - 1] = _merged(area.coord)
    return cells


def _open(path: Path, name: str, values: bool) -> Workbook:
    import openpyxl

    try:
        return openpyxl.load_workbook(path, data_only=values)
    except Exception as error:  # openpyxl lets errors of zipfile and of several XML parsers through
        raise InputError(f"is not an Excel file that can be read: {error}.", name) from None


def _sheet(workbook: Workbook, name: str, sheet: str | None) -> Worksheet:
    sheets = {each.title: each for each in workbook.worksheets}
    if sheet is None:
        return workbook.worksheets[0]
    if sheet not in sheets:
        raise InputError(f"has no sheet '{sheet}'.", name, f"Choose from: {', '.join(sheets)} (read.sheet).")
    return sheets[sheet]


def _cell(value: Any) -> Any:
    """A spreadsheet stores the answer 42 as a number; a row wants its text."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if number else value


def _stored(coordinate: str, value: Any) -> Any:
    if value is None:
        remedy = "Open the file in a spreadsheet program and save it, or put the value in place of the formula."
        return Unreadable(f"(cell {coordinate}) is a formula whose value was never stored", remedy)
    return _cell(value)


def _error(coordinate: str, value: str) -> Unreadable:
    return Unreadable(f"(cell {coordinate}) shows the error {value}", "Mend the formula.")


def _merged(area: str) -> Unreadable:
    return Unreadable(f"is merged with other cells ({area}), so this row has no value of its own", "Unmerge them and fill in every row.")


def _blank(values: list[Any]) -> bool:
    return all(value is None or value == "" for value in values)


def _named(header: list[str], values: list[Any]) -> dict[str, Any]:
    if _blank(values):
        return {}
    return {column: value for column, value in zip(header, values, strict=False) if column}
