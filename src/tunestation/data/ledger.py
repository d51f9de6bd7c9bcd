"""The account of every row: none is lost silently."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Literal

from tunestation.errors import InputError, Problem

Fate = Literal["kept", "truncated", "split", "dropped", "blank", "left out"]
UNCOUNTED = ("blank", "left out")
"""Fates that do not count among the rows: there is nothing in them, or the recipe's `limit` does not take them."""
SHOWN = 5
"""Dropped rows named in a message."""


class Ledger:
    """What became of which row, and why: written line by line, counted, and judged."""

    def __init__(self, path: Path | None = None):
        """Lines go to `path` as Zstandard-compressed JSON; without one they are only counted."""
        self.fates: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        """Why rows were dropped."""
        self._first: list[Problem] = []
        self._file = _compressed(path) if path else None

    @property
    def rows(self) -> int:
        """Rows read, blank and left out ones not counted."""
        return sum(count for fate, count in self.fates.items() if fate not in UNCOUNTED)

    def note(self, fate: Fate, where: str, why: str = "", **facts: object) -> None:
        """Write one row down; `facts` that say nothing (None, "", 0) are left out."""
        self.fates[fate] += 1
        if fate == "dropped":
            self.reasons[why] += 1
            self._first += [Problem(f"{why}{'' if why.endswith('.') else '.'}", where)] if len(self._first) < SHOWN else []
        if self._file:
            line = {"where": where, "fate": fate, "why": why} | facts
            self._file.write(f"{json.dumps({name: value for name, value in line.items() if value}, ensure_ascii=False)}\n".encode())

    def close(self) -> None:
        """Finish the file."""
        if self._file:
            self._file.close()

    def check(self, rows: int, max_dropped: float) -> None:
        """Raises InputError if no row is left, or if more than the share `max_dropped` of `rows` was dropped."""
        dropped = self.fates["dropped"]
        if dropped == rows:
            why = "; ".join(f"{count} rows: {reason}" for reason, count in self.reasons.most_common())
            what = f"nothing is left to train on, all {rows} rows were dropped ({why})."
            raise InputError(problems=[Problem(what, "data"), *self._named()])
        if dropped > max_dropped * rows:
            what = f"{dropped} of {rows} rows ({dropped / rows:.1%}) cannot be trained; data.max_dropped allows {max_dropped:.1%}."
            raise InputError(problems=[Problem(what, "data", "Mend these rows, or raise data.max_dropped."), *self._named()])

    def _named(self) -> list[Problem]:
        rest = self.fates["dropped"] - len(self._first)
        return self._first + ([Problem(f"and {rest} more rows.", "data")] if rest else [])


def _compressed(path: Path):
    import pyarrow

    return pyarrow.CompressedOutputStream(pyarrow.OSFile(str(path), "wb"), "zstd")


def read_ledger(path: Path):
    """The lines of a ledger, one by one, as objects {"where", "fate", ...}."""
    import pyarrow

    with pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd") as stream:
        rest = b""
        while block := stream.read(1 << 20):
            *lines, rest = (rest + block).split(b"\n")
            yield from map(json.loads, lines)
