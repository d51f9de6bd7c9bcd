"""Spreadsheets: merged, blank, calculated and faulty cells, and which sheet is read."""

import re
import zipfile
from datetime import date
from pathlib import Path

import openpyxl
import pytest
from reading import needs_shared, problems, read_rows, shared, write

from tunestation.data.parts import outcomes
from tunestation.data.problems import Problems
from tunestation.recipe.data import DataPart
from tunestation.recipe.formats import ColumnsFormat
from tunestation.recipe.sources import FileSource


def write_xlsx(tmp_path: Path, rows: list[list], merge: str = "", more: dict[str, list[list]] | None = None) -> Path:
    workbook = openpyxl.Workbook()
    for sheet, content in [(workbook.active, rows), *((workbook.create_sheet(name), cells) for name, cells in (more or {}).items())]:
        for row in content:
            sheet.append(row)
    if merge:
        workbook.active.merge_cells(merge)
    workbook.save(tmp_path / "coach.xlsx")
    return tmp_path / "coach.xlsx"


def told(path: Path) -> list[str]:
    """What is wrong with the rows of questions (q) and answers (a)."""
    part = DataPart(source=FileSource(kind="files", paths=("x.xlsx",)), format=ColumnsFormat(kind="columns", input="q", output="a"))
    found = Problems(path.name)
    list(outcomes(read_rows(path), part, path.name, found))
    return [str(problem) for problem in found.told()]


@pytest.mark.parametrize("rows", [[], [["q", "a"]], [["q", "a"], [None, None]]])
def test_a_sheet_without_rows_is_empty(tmp_path, rows):
    assert problems(write_xlsx(tmp_path, rows)) == ["coach.xlsx: the file is empty: it holds no rows."]


def test_rows_are_named_numbers_become_digits_and_blank_rows_stay_apart(tmp_path):
    rows = read_rows(write_xlsx(tmp_path, [["q", "a", None], ["2+2?", 4, "lost"], [None, None], ["half", 0.5], [None, ""]]))
    assert [(row.where, row.values) for row in rows] == [
        ("coach.xlsx:row 2", {"q": "2+2?", "a": "4"}),
        ("coach.xlsx:row 3", {}),
        ("coach.xlsx:row 4", {"q": "half", "a": "0.5"}),
    ]


def test_a_sheet_is_chosen_by_name_and_the_first_is_the_default(tmp_path):
    path = write_xlsx(tmp_path, [["q"], ["first"]], more={"DrugQA": [["q"], ["second"]]})
    assert read_rows(path)[0].values == {"q": "first"}
    assert read_rows(path, sheet="DrugQA")[0].values == {"q": "second"}
    assert problems(path, sheet="Drugs") == ["coach.xlsx: has no sheet 'Drugs'. Choose from: Sheet, DrugQA (read.sheet)."]


def test_a_date_is_told_as_no_text(tmp_path):
    assert told(write_xlsx(tmp_path, [["q", "a"], ["when?", date(2024, 1, 2)]])) == ["coach.xlsx:row 2: a is a datetime, not a text."]


def test_rows_without_a_value_of_their_own_because_of_a_merge_are_named(tmp_path):
    path = write_xlsx(tmp_path, [["q", "a", "note"], ["1", "one", "n"], ["2", None, "n"], ["3", "three", "n"]], merge="B2:B3")
    assert told(path) == [
        "coach.xlsx:row 3: a is merged with other cells (B2:B3), so this row has no value of its own. Unmerge them and fill in every row."
    ]


def test_a_merge_in_a_column_that_is_not_read_is_no_problem(tmp_path):
    assert told(write_xlsx(tmp_path, [["q", "a", "note"], ["1", "one", "n"], ["2", "two", None]], merge="C2:C3")) == []


def test_a_formula_without_a_stored_value_is_named_by_its_cell(tmp_path):
    assert told(write_xlsx(tmp_path, [["q", "a"], ["1", "one"], ["2", '="t"&"wo"']])) == [
        "coach.xlsx:row 3: a (cell B3) is a formula whose value was never stored. "
        "Open the file in a spreadsheet program and save it, or put the value in place of the formula."
    ]


def calculated(path: Path, value: str, kind: str) -> Path:
    """The workbook as a spreadsheet program saves it: with the values of its formulas beside them."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    sheet = members["xl/worksheets/sheet1.xml"].decode()
    members["xl/worksheets/sheet1.xml"] = re.sub(
        r'<c r="(\w+)"[^>]*><f>(.*?)</f><v ?/?>(</v>)?', rf'<c r="\1" t="{kind}"><f>\2</f><v>{value}</v>', sheet
    ).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_a_formula_counts_with_its_stored_value(tmp_path):
    path = calculated(write_xlsx(tmp_path, [["q", "a"], ["2", '="t"&"wo"']]), "two", "str")
    assert read_rows(path)[0].values == {"q": "2", "a": "two"}


def test_a_formula_that_shows_an_error_is_named_by_its_cell(tmp_path):
    path = calculated(write_xlsx(tmp_path, [["q", "a"], ["2", "=1/0"]]), "#DIV/0!", "e")
    assert told(path) == ["coach.xlsx:row 2: a (cell B2) shows the error #DIV/0!. Mend the formula."]


def test_a_damaged_spreadsheet_is_one_problem(tmp_path):
    assert "is not an Excel file that can be read" in problems(write(tmp_path, "x.xlsx", b"PK\x03\x04 cut off"))[0]


@needs_shared
def test_the_career_coach_sheet_has_246_rows_of_q_and_a():
    rows = read_rows(shared("career_coach.xlsx"))
    assert len(rows) == 246
    assert all(list(row.values) == ["q", "a"] and all(row.values.values()) for row in rows)
    assert (rows[0].where, rows[-1].where) == ("career_coach.xlsx:row 2", "career_coach.xlsx:row 247")
