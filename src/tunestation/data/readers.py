"""One small reader for each kind of file: .json, .jsonl, .csv, .xlsx. A row keeps the place it came from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunestation.data.problems import Problems
from tunestation.errors import InputError, Problem


@dataclass(frozen=True)
class Row:
    """One row of a file, before anything is made of it."""

    values: dict[str, Any]
    """Column or key -> value. Empty for a blank row between others."""
    where: str
    """`career.jsonl:17`, `coach.xlsx:row 5` or `x.json:[3]` (counted from 0, as in Python)."""


def read_rows(path: Path, name: str) -> list[Row]:
    """All rows of the file at `path`, called `name` in messages.

    Raises InputError with every problem of the file: missing, empty, not UTF-8, malformed, rows that are no objects.
    """
    if not path.is_file():
        raise InputError("the file does not exist.", name, "Check the path; it is looked up beside the recipe and in TUNE_DATASETS.")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"files of kind '{path.suffix}' cannot be read.", name, f"Use one of: {', '.join(READERS)}.")
    problems = Problems(name)
    rows = reader(path, name, problems)
    problems.raise_if_any()
    if not any(row.values for row in rows):
        raise InputError("the file is empty: it holds no rows.", name)
    return rows


def _text(path: Path, name: str) -> str:
    """The file as UTF-8, without a byte order mark."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"is not UTF-8: byte {error.start} of the file (0x{content[error.start]:02x}) fits nothing."
        raise InputError(what, f"{name}:{line}", "Save the file as UTF-8.") from None


def _read_json(path: Path, name: str, problems: Problems) -> list[Row]:
    """An array of objects, or one object a line: both go by .json and by .jsonl in the wild."""
    text = _text(path, name)
    if text.lstrip().startswith("["):
        return _array(text, name, problems)
    return _lines(text, name, problems)


def _array(text: str, name: str, problems: Problems) -> list[Row]:
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        problems.add(Problem(f"malformed JSON: {error.msg} (column {error.colno}).", f"{name}:{error.lineno}"))
        return []
    return _objects([(f"{name}:[{index}]", item) for index, item in enumerate(items)], problems)


def _lines(text: str, name: str, problems: Problems) -> list[Row]:
    items = []
    # Not splitlines(): U+2028 and its like are allowed inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            items.append((f"{name}:{number}", json.loads(line)))
        except json.JSONDecodeError as error:
            problems.add(Problem(f"malformed JSON: {error.msg} (column {error.colno}).", f"{name}:{number}"))
    if not items and _is_one_object(text):
        raise InputError("the file is one JSON object.", name, "Write an array of rows, or one row a line.")
    return _objects(items, problems)


def _is_one_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except json.JSONDecodeError:
        return False


def _objects(items: list[tuple[str, Any]], problems: Problems) -> list[Row]:
    rows = []
    for where, item in items:
        if isinstance(item, dict):
            rows.append(Row(item, where))
        else:
            problems.add(Problem(f"the row is no object but {json.dumps(item, ensure_ascii=False)[:40]}.", where))
    return rows


def _read_csv(path: Path, name: str, problems: Problems) -> list[Row]:
    """The first line names the columns. Strict: an unclosed quote would otherwise swallow the rest of the file."""
    csv.field_size_limit(2**31 - 1)
    records = csv.reader(io.StringIO(_text(path, name), newline=""), strict=True)
    rows: list[Row] = []
    header: list[str] = []
    line = 1
    try:
        for record in records:
            if record and not header:
                header = _header(record, f"{name}:{line}", problems)
            elif record:
                rows += _record(header, record, f"{name}:{line}", problems)
            line = records.line_num + 1
    except csv.Error as error:
        problems.add(Problem(f"malformed CSV: {error}.", f"{name}:{line}"))
    return rows


def _record(header: list[str], record: list[str], where: str, problems: Problems) -> list[Row]:
    if len(record) != len(header):
        problems.add(Problem(f"the row has {len(record)} fields, the first line names {len(header)} columns.", where))
        return []
    return [Row(dict(zip(header, record, strict=True)) if any(record) else {}, where)]


def _header(record: list[Any], where: str, problems: Problems) -> list[str]:
    names = ["" if cell is None else str(cell) for cell in record]
    twice = sorted({column for column in names if column and names.count(column) > 1})
    if twice:
        problems.add(Problem(f"two columns have the same name: {', '.join(twice)}.", where, "Rename one."))
    return names


def _read_xlsx(path: Path, name: str, problems: Problems) -> list[Row]:
    """The first sheet; its first row names the columns. Numbers become their digits; blank rows at the end are no rows."""
    import openpyxl

    try:
        workbook = openpyxl.load_workbook(path, read_only=True, data_only=True)
        cells = list(workbook.worksheets[0].iter_rows(values_only=True))
        workbook.close()
    except Exception as error:  # openpyxl lets errors of zipfile and of several XML parsers through
        raise InputError(f"is not an Excel file that can be read: {error}.", name) from None
    while cells and _blank(cells[-1]):
        cells.pop()
    if not cells:
        return []
    header = _header(list(cells[0]), f"{name}:row 1", problems)
    return [Row(_named(header, values), f"{name}:row {number}") for number, values in enumerate(cells[1:], start=2)]


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


READERS: dict[str, Callable[[Path, str, Problems], list[Row]]] = {
    ".json": _read_json,
    ".jsonl": _read_json,
    ".csv": _read_csv,
    ".xlsx": _read_xlsx,
}
"""Suffix -> reader(path, name, problems)."""
