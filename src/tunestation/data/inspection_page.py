"""The page of `invoke inspect`: one file without anything from outside, in which all data is escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from tunestation.data.inspection import RowView, histogram

STATES = ("context", "learned", "lost")
LONGEST = 20_000
"""Characters and tokens of one row on the page; a row of megabytes would freeze it."""
WIDTH, HEIGHT = 330, 120


@dataclass(frozen=True)
class Overview:
    """What the upper half shows."""

    title: str
    summary: str
    warnings: Sequence[str]
    facts: Sequence[tuple[str, str]]
    lengths: Sequence[int]
    """Tokens of each learned row."""
    shares: Sequence[float]
    """Share of its tokens that is learned, of each of these rows."""
    fills: Sequence[int]
    """Tokens of each pack."""
    capacity: int
    """Tokens that a pack can hold."""
    rows: int
    """Rows in all."""


class Page(Template):
    """The page before it is filled in; CSS and JavaScript need the usual dollar for themselves."""

    delimiter = "§"


def page(overview: Overview, rows: Sequence[RowView]) -> str:
    """The whole page as HTML."""
    template = Page((Path(__file__).parent / "inspect.html").read_text(encoding="utf-8"))
    warnings = "".join(f"<li>{escape(text)}</li>" for text in overview.warnings)
    top = max(overview.lengths, default=1)
    selection = f"{len(rows):,} of {overview.rows:,} rows are here: those that did not go through as they are, and others evenly spread."
    return template.substitute(
        title=escape(overview.title),
        summary=escape(overview.summary),
        warnings=f'<ul class="warnings">{warnings}</ul>' if warnings else "",
        facts="".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in overview.facts),
        lengths=bars("tokens of a row", histogram(overview.lengths, top), f"{top:,}"),
        shares=bars("share of a row that is learned", histogram(overview.shares, 1), "100 %"),
        fills=bars(f"how full the packs of {overview.capacity:,} are", histogram(overview.fills, overview.capacity), "100 %"),
        selection=escape(selection if len(rows) < overview.rows else ""),
        data=embedded(rows),
    )


def bars(title: str, counts: Sequence[int], top: str) -> str:
    """A histogram from 0 to `top` as SVG; each bar tells its count to the mouse."""
    most, step, base = max(*counts, 1), WIDTH / len(counts), 20 + HEIGHT
    shapes = []
    for place, count in enumerate(counts):
        high = HEIGHT * count / most
        where = f'x="{place * step:.1f}" y="{base - high:.1f}" width="{step - 1.5:.1f}" height="{high:.1f}"'
        shapes.append(f"<rect {where}><title>{count:,}</title></rect>")
    shapes.append(f'<line x1="0" x2="{WIDTH}" y1="{base}" y2="{base}"/>')
    for x, y, anchor, text in ((0, 12, "start", title), (WIDTH, 12, "end", f"highest: {most:,}"), (0, base + 14, "start", "0")):
        shapes.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>')
    shapes.append(f'<text x="{WIDTH}" y="{base + 14}" text-anchor="end">{escape(top)}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {base + 20}" role="img">{"".join(shapes)}</svg>'


def embedded(rows: Sequence[RowView]) -> str:
    """The rows as JSON that cannot end the script element it stands in."""
    used = {token.id: token.text for row in rows for token in row.tokens[:LONGEST]}
    value = {"rows": [_row(row) for row in rows], "vocabulary": used}
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _row(row: RowView) -> dict:
    return {"number": row.number, "line": row.line, "segments": _segments(row), "tokens": _tokens(row)}


def _segments(row: RowView) -> list[tuple[str, int]]:
    room, found = LONGEST, []
    for text, state in row.segments:
        found += [(text[:room], STATES.index(state))] if room > 0 else []
        room -= len(text)
    return found if room >= 0 else [*found, (f" ... and {-room:,} characters more", 0)]


def _tokens(row: RowView) -> list[tuple[int, int]]:
    return [(token.id, STATES.index(token.state)) for token in row.tokens[:LONGEST]]
