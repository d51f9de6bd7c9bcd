"""Plain text: documents in a column `text`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from tunestation.data.problems import Problems
from tunestation.data.readers.row import Row
from tunestation.data.readers.text import lines
from tunestation.recipe.data import ReadOptions


def text_rows(path: Path, name: str, options: ReadOptions, problems: Problems) -> Iterator[Row]:
    """The file as one document, or one a paragraph or line that is not blank (`options.document`)."""
    numbered = enumerate(lines(path, name, options, problems, newline="\n"), start=1)
    for line, text in DOCUMENTS[options.document](numbered):
        yield Row({"text": text}, f"{name}:{line}")


Numbered = Iterable[tuple[int, str]]


def _file(numbered: Numbered) -> Iterator[tuple[int, str]]:
    text = "".join(line for _, line in numbered)
    if text.strip():
        yield 1, text


def _paragraphs(numbered: Numbered) -> Iterator[tuple[int, str]]:
    """Runs of lines between blank ones; the line ends inside stay."""
    for blank, run in groupby(numbered, key=lambda pair: pair[1].isspace()):
        if not blank:
            block = list(run)
            yield block[0][0], "".join(line for _, line in block).rstrip("\r\n")


def _lines(numbered: Numbered) -> Iterator[tuple[int, str]]:
    return ((number, line.rstrip("\r\n")) for number, line in numbered if not line.isspace())


DOCUMENTS = {"file": _file, "paragraph": _paragraphs, "line": _lines}
"""The recipe's `read.document` -> how lines become documents, each with its first line."""
