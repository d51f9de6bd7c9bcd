"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """The answer of one check."""

    level: Level
    """`problem`: a run would fail, leave the GPU idle, or vanish; `warning`: it works, but slower, or in need of some care."""
    subject: str
    """What was looked at, in a word or two."""
    what: str
    remedy: str = ""
