"""What people see: tables, durations, and a line of progress."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Sequence


def width(text: str) -> int:
    """Columns that `text` takes in a terminal; Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Rows as aligned columns, two spaces apart."""
    every = [[str(cell) for cell in row] for row in ([header, *rows] if header else rows)]
    if not every:
        return ""
    widths = [max(width(row[column]) for row in every) for column in range(len(every[0]))]
    lines = ["  ".join(cell + " " * (size - width(cell)) for cell, size in zip(row, widths, strict=True)).rstrip() for row in every]
    if header:
        lines.insert(1, "  ".join("-" * size for size in widths))
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """`7.2 s`, `3 min 20 s`, `2 h 05 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """A bar that redraws itself on a terminal, and a line now and then in a file or pipe."""

    def __init__(self, total: int, every_seconds: float = 5.0):
        self.total = total
        self.started = time.monotonic()
        self.first: int | None = None
        self.live = sys.stdout.isatty()
        self.every = 0.1 if self.live else every_seconds
        self.shown = 0.0

    def show(self, done: int, text: str) -> None:
        """Tell that `done` of `total` are done, unless that was told a moment ago."""
        now = time.monotonic()
        if self.first is None:
            self.first = done - 1
        if now - self.shown < self.every and done < self.total:
            return
        self.shown = now
        rate = (done - self.first) / max(now - self.started, 1e-9)
        left = (self.total - done) / rate
        filled = round(20 * done / self.total)
        line = f"  {'━' * filled}{'╌' * (20 - filled)} {done}/{self.total}  {text}  {duration(left)} left"
        sys.stdout.write(f"\r\033[K{line}" if self.live else f"{line}\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A line of its own."""
        sys.stdout.write(f"\r\033[K  {text}\n" if self.live else f"  {text}\n")
        sys.stdout.flush()

    def close(self, text: str) -> None:
        """The last line."""
        sys.stdout.write(f"{chr(10) if self.live else ''}  {text}\n")
        sys.stdout.flush()
