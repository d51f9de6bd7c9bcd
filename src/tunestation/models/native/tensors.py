"""Tensors from a family's layout into ours and back, by the lines of its table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from tunestation.models.native.family import Family, Line, Rows
from tunestation.models.shards import Planned, Shards

ROWS = 4096
"""Rows that are changed at once."""


def take(packed: torch.Tensor, rows: Rows, part: int) -> torch.Tensor:
    """The rows of one part: [groups * sum(parts), ...] -> [groups * parts[part], ...]."""
    grouped = packed.unflatten(0, (rows.groups, sum(rows.parts)))
    return grouped.narrow(1, sum(rows.parts[:part]), rows.parts[part]).flatten(0, 1)


def join(parts: Sequence[torch.Tensor], rows: Rows) -> torch.Tensor:
    """The inverse of `take` for all parts."""
    return torch.cat([part.unflatten(0, (rows.groups, size)) for part, size in zip(parts, rows.parts, strict=True)], dim=1).flatten(0, 1)


def unit_rows(weight: torch.Tensor) -> torch.Tensor:
    """Every row divided by its Euclidean length, in fp32, rounded once: [rows, columns] in any dtype. In little memory."""
    unit = torch.empty_like(weight)
    for given, made in zip(weight.split(ROWS), unit.split(ROWS), strict=True):
        made.copy_(torch.nn.functional.normalize(given.float()))
    return unit


def planned(family: Family, config: dict, shards: Shards) -> tuple[list[Planned], list[str]]:
    """Our tensors in the order of their files, and the names of theirs that the table does not know."""
    known = {line.theirs_of(n): (line, n) for line in family.table(config) for n in range(family.layers(config))}
    plan, unknown = [], []
    for name in shards.names:
        module, _, kind = name.rpartition(".")
        if name.endswith(family.ignored):
            continue
        if module not in known or kind not in ("weight", "bias"):
            unknown.append(name)
            continue
        line, layer = known[module]
        plan += _ours(line, layer, name, kind, shards)
    return plan, unknown


def _ours(line: Line, layer: int, name: str, kind: str, shards: Shards) -> Iterator[Planned]:
    for part, ours in enumerate(line.ours_of(layer)):
        make = _maker(line, part)
        yield Planned(f"{ours}.{kind}", make(shards.meta(name)), lambda make=make: make(shards.read(name)))


def _maker(line: Line, part: int) -> Callable[[torch.Tensor], torch.Tensor]:
    if line.rows:
        return lambda packed: take(packed, line.rows, part)
    return unit_rows if line.change == "unit_rows" else lambda tensor: tensor


def planned_back(family: Family, config: dict, shards: Shards) -> list[Planned]:
    """Their tensors, from ours, in the order of the table. A head of unit rows stays one: dividing by one changes nothing."""
    plan = []
    for line in family.table(config):
        for layer in range(family.layers(config) if "*" in line.theirs else 1):
            plan += _theirs(line, layer, shards)
    return plan


def _theirs(line: Line, layer: int, shards: Shards) -> Iterator[Planned]:
    for kind in ("weight", "bias"):
        names = [f"{ours}.{kind}" for ours in line.ours_of(layer)]
        if all(name in shards for name in names):
            make = (lambda parts: join(parts, line.rows)) if line.rows else (lambda parts: parts[0])
            meta = make([shards.meta(name) for name in names])
            theirs = f"{line.theirs_of(layer)}.{kind}"
            yield Planned(theirs, meta, lambda make=make, names=names: make([shards.read(name) for name in names]))
