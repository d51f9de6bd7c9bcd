"""How often each row of each source is seen in one epoch: `limit`, `repeat` and `weight`, decided by the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol


class Mixed(Protocol):
    """What decides it; the recipe's DataPart is one."""

    limit: int | None
    repeat: int
    weight: float | None


@dataclass(frozen=True)
class Copies:
    """Of one source: how often each of its rows is seen."""

    each: int
    """Copies of every row that is taken."""
    taken: frozenset[int] | None = None
    """Rows that are taken, counted from 0; None takes all."""
    once_more: frozenset[int] = frozenset()
    """Rows that are seen one time more."""

    def of(self, row: int) -> int:
        """Copies of the row with this index; 0 leaves it out."""
        return self.each + (row in self.once_more) if self.taken is None or row in self.taken else 0


def counts_are_needed(parts: Sequence[Mixed]) -> bool:
    """Whether `mix` has to know how many rows there are: only then are files read twice."""
    return any(part.limit or part.weight for part in parts)


def mix(parts: Sequence[Mixed], rows: Sequence[int], seed: int) -> list[Copies]:
    """The copies of each source, whose numbers of rows are `rows`. Equal arguments give equal copies.

    With weights, source i is seen round(T * weight_i) times in all, where T is the largest of taken_i / weight_i: so no
    row is left out for the sake of a share, and the shares hold as nearly as whole rows allow.
    """
    taken = [min(count, part.limit or count) for part, count in zip(parts, rows, strict=True)]
    scale = max((count / part.weight for part, count in zip(parts, taken, strict=True) if part.weight), default=0.0)
    found = []
    for place, (part, count, kept) in enumerate(zip(parts, rows, taken, strict=True)):
        random = Random(f"{seed}:{place}")
        chosen = None if kept == count else frozenset(random.sample(range(count), kept))
        wanted = round(scale * part.weight) if part.weight else kept * part.repeat
        each, rest = divmod(wanted, kept) if kept else (1, 0)
        again = random.sample(range(count) if chosen is None else sorted(chosen), rest)
        found.append(Copies(each, chosen, frozenset(again)))
    return found
