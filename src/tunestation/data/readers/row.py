"""What every reader yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Unreadable:
    """Stands where a file has no value that can be trusted: it is a problem only if a format reads it."""

    reason: str
    """What is wrong, as the end of a sentence that begins with the column."""
    remedy: str


@dataclass(frozen=True)
class Row:
    """One row of a file, before anything is made of it."""

    values: dict[str, Any]
    """Column or key -> value. Empty for a blank row between others."""
    where: str
    """`career.jsonl:17`, `coach.xlsx:row 5` or `x.json:[3]` (counted from 0, as in Python)."""
