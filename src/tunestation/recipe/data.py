"""The `data` section: sources, their row formats, and what may be dropped."""

import codecs
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tunestation.recipe.base import Fraction, Part, Positive
from tunestation.recipe.formats import AutoFormat, Format
from tunestation.recipe.sources import DataSource


def _is_known(encoding: str) -> str:
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise ValueError("is no encoding that Python knows. Try utf-8, gb18030, big5, shift_jis, utf-16 or latin-1.") from None
    return encoding


class ReadOptions(Part):
    """How the files are opened, where their suffix does not say it all."""

    encoding: Annotated[str, AfterValidator(_is_known)] = "utf-8"
    """Of JSON, CSV, TSV and text files; a byte order mark is no part of the data."""
    sheet: str | None = None
    """Of .xlsx files: the sheet to read; unset reads the first."""
    document: Literal["file", "paragraph", "line"] = "file"
    """Of .txt files: what one document is; paragraphs are separated by blank lines."""


class DataPart(Part):
    """One source of rows and how to read them."""

    source: DataSource
    """Where the rows are."""
    read: ReadOptions = ReadOptions()
    """How its files are opened."""
    format: Format = AutoFormat(kind="auto")
    """How a row becomes a conversation or a document."""
    system: str | None = None
    """A system text for every row that has none of its own."""
    variables: dict[Annotated[str, Field(pattern=r"^\w+$")], str] = {}
    """Values for placeholders such as `{{name}}` in the rows' texts."""
    limit: Positive | None = None
    """Read at most this many rows, chosen by `train.seed`; unset reads all."""
    repeat: Positive = 1
    """How often each row is seen in one epoch."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of the mix beside the other sources' weights: the source that is largest for its weight is seen once, rows of the others are
    repeated, chosen by `train.seed`. All sources have one or none; not beside `repeat`."""


class Data(Part):
    """What the model learns from."""

    sources: Annotated[tuple[DataPart, ...], Field(min_length=1)]
    """Read in this order, then shuffled together by `train.seed`."""
    max_dropped: Fraction = 0.01
    """Share of rows that may be untrainable (no answer, nothing left after cutting) before `prepare` fails."""
