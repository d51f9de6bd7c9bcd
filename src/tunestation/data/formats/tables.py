"""Tables: some columns ask, one answers. A known data set is one entry of TABLES."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunestation.data.formats.message import Draft, Message
from tunestation.data.formats.registry import FORMATS, RowFormat, row_format
from tunestation.data.formats.values import column, text
from tunestation.data.readers.row import Row
from tunestation.errors import InputError

CODER = "You are a professional programer. Please provide the corresponding code based on the description of Human.\n"
LAWYER = "你现在是一名专业的中国律师，请根据用户的问题给出准确、有理有据的回复。\n"
MEDICAL = "如果你是一名医生，请根据患者的描述回答医学问题。\n"
SQL = "If you are an expert in SQL, please generate a good SQL Query for Question based on the CREATE TABLE statement.\n"
ARXIV = "If you are an expert in writing papers, please generate a good paper title for this paper based on other authors' descriptions of their abstracts.\n"  # noqa: E501
COLORIST = "You are a professional color designer. Please provide the corresponding colors based on the description of Human.\n"


@dataclass(frozen=True)
class Table:
    """The columns of a known layout, and the system text that XTuner gives its rows."""

    question: tuple[str, ...]
    """Columns that ask, joined by a newline; an empty one adds none."""
    answer: str
    system: str = ""
    """Letter for letter XTuner's SYSTEM_TEMPLATE, with its final newline; `system` of the recipe goes before it."""
    system_column: str = "system"
    """Column with a row's own system text; may be missing."""
    optional: str = ""
    """The column of `question` that may be missing."""
    after_colon: bool = False
    """Whether only what follows the first colon of the question counts."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns without which no row can be read."""
        return (*(name for name in self.question if name != self.optional), self.answer)


TABLES = {
    "alpaca": Table(("instruction", "input"), "output", optional="input"),
    "alpaca_zh": Table(("instruction_zh", "input_zh"), "output_zh", optional="input_zh"),
    "arxiv": Table(("abstract",), "title", ARXIV),
    "code_alpaca": Table(("prompt",), "completion", CODER),
    "colors": Table(("description",), "color", COLORIST, after_colon=True),
    "crime_kg_assitant": Table(("input",), "output", LAWYER),
    "crime_kg_assitan": Table(("input",), "output", LAWYER),
    "default": Table(("input",), "output"),
    "law_reference": Table(("question",), "answer", LAWYER),
    "medical": Table(("instruction", "input"), "output", MEDICAL, optional="input"),
    "openorca": Table(("question",), "response", system_column="system_prompt"),
    "prompt_completion": Table(("prompt",), "completion"),
    "sql": Table(("context", "question"), "answer", SQL),
    "stack_exchange": Table(("question",), "response"),
    "tiny_codes": Table(("prompt",), "response", CODER),
}
"""`kind` of the recipe's format -> layout."""


def _register(kind: str, table: Table) -> None:
    FORMATS[kind] = RowFormat(lambda params: table.columns, lambda params, row: _read(table, row), table.system)


for _kind, _table in TABLES.items():
    _register(_kind, _table)


def _read(table: Table, row: Row) -> Draft:
    """The row's question and answer, after the earlier ones of its `history` if it has any.

    XTuner writes a newline after a question whose second column is empty; here there is none. The answer `<nooutput>` of
    the original Alpaca data stands for no answer, as in XTuner.
    """
    asked = [column(row, name) for name in table.question]
    question, answer = "\n".join(part for part in asked if part.strip()), column(row, table.answer)
    if table.after_colon and ":" in question:
        question = question.partition(":")[2].strip()
    earlier = [message for one in _history(row) for message in pair("", *one)]
    system, *rest = pair(column(row, table.system_column), question, "" if answer.strip() == "<nooutput>" else answer)
    return Draft([system, *earlier, *rest] if system.role == "system" else [*earlier, system, *rest])


def _history(row: Row) -> list[list[str]]:
    """Earlier turns in a column `history`: a list of pairs of question and answer."""
    turns = row.values.get("history") or []
    if not isinstance(turns, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise InputError("history is no list of pairs of question and answer.", row.where)
    return [[text(each, f"history[{index}]", row.where) for each in turn] for index, turn in enumerate(turns)]


@row_format("columns", columns=lambda params: tuple(name for name in (params.input, params.output, params.system) if name))
def _columns(params: Any, row: Row) -> Draft:
    """One column asks, one answers, optionally one holds a system text."""
    system = column(row, params.system) if params.system else ""
    return Draft(pair(system, column(row, params.input), column(row, params.output)))


def pair(system: str, question: str, answer: str, loss: bool = True) -> list[Message]:
    """A question and its answer, after a system text if there is one."""
    first = [Message("system", system)] if system.strip() else []
    return [*first, Message("user", question), Message("assistant", answer, loss)]
