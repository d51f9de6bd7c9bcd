"""What people see: tables, durations, and a line of progress."""

from __future__ import annotations

import math
import re
import shutil
import sys
import textwrap
import time
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest

MIN_COLUMN = 8
"""Columns that a cell gets in the narrowest terminal."""


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


def fitted(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """The same within the terminal's width, or 100 columns in a file or pipe: wide cells go on in the next line.

    The first column stays whole: it names what is to be typed or copied.
    """
    first, *others = (max(map(width, column)) for column in zip(header, *rows, strict=True))
    room = _columns() - first - 2 * len(others)
    sizes = [first, *_shares(others, room)]
    lines: list[Sequence[str]] = []
    for row in rows:
        lines += zip_longest(*(wrapped(cell, size) for cell, size in zip(row, sizes, strict=True)), fillvalue="")
    return table(lines, header)


def filled(text: str) -> str:
    """A sentence within the terminal's width, or 100 columns in a file or pipe; what goes on is indented."""
    return textwrap.fill(text, _columns(), subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def _columns() -> int:
    """Of the terminal, or 100 in a file or pipe."""
    return shutil.get_terminal_size(fallback=(100, 24)).columns


def _shares(natural: Sequence[int], room: int) -> list[int]:
    """Columns for each of several texts: what it would take, or for the widest ones equal parts of the room that others leave."""
    left, sizes = room, {}
    for place in sorted(range(len(natural)), key=natural.__getitem__):
        sizes[place] = min(natural[place], max(MIN_COLUMN, left // (len(natural) - len(sizes))))
        left -= sizes[place]
    return [sizes[place] for place in range(len(natural))]


def wrapped(text: str, size: int) -> list[str]:
    """`text` in lines of at most `size` columns, cut between words, behind slashes and hyphens, or within what is longer than a line."""
    lines = [""]
    for piece in re.findall(r"\s*[^\s/-]*[/-]*", text):
        if width(lines[-1] + piece) <= size:
            lines[-1] += piece
            continue
        lines.append("")
        for char in piece.lstrip():
            if width(lines[-1] + char) > size:
                lines.append("")
            lines[-1] += char
    return [line for line in lines if line] or [""]


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
        self.begin(0)
        self.live = sys.stdout.isatty()
        self.every = 0.1 if self.live else every_seconds
        self.shown = -math.inf  # the clock may have begun with this machine, a moment ago

    def begin(self, done: int) -> None:
        """From now on it goes on; `done` were done before, and say nothing of how long the rest will take."""
        self.started, self.first = time.monotonic(), done

    def show(self, done: int, text: str) -> None:
        """Tell that `done` of `total` are done, unless that was told a moment ago."""
        now = time.monotonic()
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
