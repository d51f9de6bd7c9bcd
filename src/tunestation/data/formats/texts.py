"""Texts to continue, for pre-training."""

from __future__ import annotations

from typing import Any

from tunestation.data.formats.message import Draft
from tunestation.data.formats.registry import row_format
from tunestation.data.formats.values import column
from tunestation.data.readers.row import Row


@row_format("text", columns=lambda params: (params.column,))
def _text(params: Any, row: Row) -> Draft:
    """A column with a document."""
    return Draft(text=column(row, params.column))
