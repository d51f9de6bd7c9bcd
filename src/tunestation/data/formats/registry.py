"""The known formats. A new one is one function with `@row_format`, and its fields in recipe/data.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunestation.data.formats.message import Draft
from tunestation.data.readers.row import Row

Reader = Callable[[Any, Row], Draft]


@dataclass(frozen=True)
class RowFormat:
    """How rows of one kind are read."""

    columns: Callable[[Any], tuple[str, ...]]
    """The columns without which no row can be read, given the format's parameters."""
    read: Reader
    """(parameters, row) -> what stands in the row. Raises InputError on a wrong type or role, Unusable for a row that cannot be trained."""
    system: str = ""
    """Given to rows without a system text, unless the recipe names another."""


FORMATS: dict[str, RowFormat] = {}
"""`kind` of the recipe's format -> how to read its rows."""


def row_format(*kinds: str, columns: Callable[[Any], tuple[str, ...]]) -> Callable[[Reader], Reader]:
    """Registers the decorated function as the reader of `kinds`."""

    def register(read: Reader) -> Reader:
        FORMATS.update({kind: RowFormat(columns, read) for kind in kinds})
        return read

    return register
