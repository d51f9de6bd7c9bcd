"""Tensors from a family's layout into ours and back, by the lines of its table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from tunestation.models.native.family import Family, Line, Rows
from tunestation.models.shards import Piece, Planned, Shards, moved

ROWS = 4096
"""Rows that are changed at once."""


def take(packed: torch.Tensor, rows: Rows, part: int) -> torch.Tensor:
    """The rows of one part: [groups * sum(parts), ...] -> [groups * parts[part], ...]."""
    grouped = packed.unflatten(0, (rows.groups, sum(rows.parts)))
    return grouped.narrow(1, sum(rows.parts[:part]), rows.parts[part]).flatten(0, 1)


def unit_rows(weight: torch.Tensor) -> torch.Tensor:
    """Every row divided by its Euclidean length, in fp32, rounded once: [rows, columns] in any dtype."""
    return torch.nn.functional.normalize(weight.float()).to(weight.dtype)


@dataclass(frozen=True)
class Plan:
    """What becomes of a family's tensors."""

    tensors: list[Planned]
    """Ours, in the order of the files of theirs."""
    unknown: list[str]
    """Names of theirs that the table does not know."""
    misshapen: dict[str, tuple[str, ...]]
    """Packed ones of theirs that do not have the rows that the table shares out: name and both shapes -> names of ours."""


def planned(family: Family, config: dict, shards: Shards) -> Plan:
    """Our tensors from those of `shards`. Only headers are read."""
    known = {line.theirs_of(n): (line, n) for line in family.table(config) for n in range(family.layers(config))}
    plan = Plan([], [], {})
    for name in shards.names:
        module, _, kind = name.rpartition(".")
        if name.endswith(family.ignored):
            continue
        if module not in known or kind not in ("weight", "bias"):
            plan.unknown.append(name)
            continue
        line, layer = known[module]
        shape = shards.meta(name).shape
        if line.rows and shape[0] != line.rows.total:
            what = f"{name} {list(shape)} instead of {[line.rows.total, *shape[1:]]}"
            plan.misshapen[what] = tuple(f"{ours}.{kind}" for ours in line.ours_of(layer))
            continue
        plan.tensors.extend(_ours(line, layer, name, kind, shards))
    return plan


def _ours(line: Line, layer: int, name: str, kind: str, shards: Shards) -> Iterator[Planned]:
    meta = shards.meta(name)
    for part, ours in enumerate(line.ours_of(layer)):
        if line.rows:
            size = line.rows.groups * line.rows.parts[part]
            yield moved(f"{ours}.{kind}", meta.new_empty(size, *meta.shape[1:]), partial(_taken, shards, name, line.rows, part))
        elif line.change == "unit_rows":
            yield Planned(f"{ours}.{kind}", meta, lambda: unit_rows(shards.read(name)), lambda: _unit_rows(shards.read(name)))
        else:
            yield moved(f"{ours}.{kind}", meta, lambda: iter([shards.rows(name)]))


def _taken(shards: Shards, name: str, rows: Rows, part: int) -> Iterator[Piece]:
    """The rows of one part, group by group: what `take` gives."""
    begin, width = sum(rows.parts[:part]), sum(rows.parts)
    return (shards.rows(name, group * width + begin, rows.parts[part]) for group in range(rows.groups))


def _unit_rows(weight: torch.Tensor) -> Iterator[Piece]:
    return (partial(unit_rows, rows) for rows in weight.split(ROWS))


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
            meta, size = shards.meta(names[0]), sum(len(shards.meta(name)) for name in names)
            yield moved(
                f"{line.theirs_of(layer)}.{kind}", meta.new_empty(size, *meta.shape[1:]), partial(_packed, shards, names, line.rows)
            )


def _packed(shards: Shards, names: list[str], rows: Rows | None) -> Iterator[Piece]:
    """The rows of all parts, group by group: the inverse of `_taken`."""
    if rows is None:
        return iter([shards.rows(names[0])])
    parts = list(zip(names, rows.parts, strict=True))
    return (shards.rows(name, group * size, size) for group in range(rows.groups) for name, size in parts)
