"""The account of rows that did not go through as they are: each is named, none is lost silently."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from tunestation.errors import InputError, Problem

Fate = Literal["dropped", "truncated", "repaired", "blank", "left out"]
FATES = get_args(Fate)
SHOWN = 5
"""Dropped rows named in a message."""


@dataclass
class Ledger:
    """What happened to which row, and why."""

    entries: list[tuple[Fate, str, str]] = field(default_factory=list)
    """(fate, where, reason)"""

    def note(self, fate: Fate, where: str, reason: str) -> None:
        """Write one row down."""
        self.entries.append((fate, where, reason))

    def count(self, fate: Fate) -> int:
        """How many rows met this fate."""
        return sum(1 for entry in self.entries if entry[0] == fate)

    def reasons(self) -> Counter[str]:
        """Why rows were dropped, and how many for each reason."""
        return Counter(reason for fate, _, reason in self.entries if fate == "dropped")

    def write(self, path: Path) -> None:
        """One JSON object a line."""
        lines = (json.dumps({"fate": fate, "where": where, "reason": reason}, ensure_ascii=False) for fate, where, reason in self.entries)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def check(self, rows: int, max_dropped: float) -> None:
        """Raises InputError if no row is left, or if more than the share `max_dropped` of `rows` was dropped."""
        dropped = self.count("dropped")
        if dropped == rows:
            why = "; ".join(f"{count} rows: {reason}" for reason, count in self.reasons().most_common())
            what = f"nothing is left to train on, all {rows} rows were dropped ({why})."
            raise InputError(problems=[Problem(what, "data"), *self._named()])
        if dropped > max_dropped * rows:
            what = f"{dropped} of {rows} rows ({dropped / rows:.1%}) cannot be trained; data.max_dropped allows {max_dropped:.1%}."
            raise InputError(problems=[Problem(what, "data", "Mend these rows, or raise data.max_dropped."), *self._named()])

    def _named(self) -> list[Problem]:
        dropped = [entry for entry in self.entries if entry[0] == "dropped"]
        named = [Problem(f"{reason}.", where) for _, where, reason in dropped[:SHOWN]]
        return named + ([Problem(f"and {len(dropped) - SHOWN} more rows.", "data")] if len(dropped) > SHOWN else [])
