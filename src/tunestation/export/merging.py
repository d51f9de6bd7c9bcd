"""Base and adapter become one set of safetensors shards, tensor by tensor: memory holds a few of the largest, whatever the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from tunestation.errors import TunestationError
from tunestation.export.adapter import Adapter, Change, check, merged, pieces
from tunestation.fetching.progress import amount
from tunestation.models.names import HEAD, embedding_of
from tunestation.models.shards import Piece, Planned, Shards, write_shards

Rounding = Callable[[str, torch.Tensor], torch.Tensor]
"""(name, weight) -> the weight as training held it."""


def as_stored(_name: str, weight: torch.Tensor) -> torch.Tensor:
    """The base in 16 bit: as it is in its files."""
    return weight


@dataclass(frozen=True)
class Plan:
    """What the merged model will hold."""

    tensors: tuple[Planned, ...]
    release: Callable[[], None]
    """Forgets what was read."""
    changed: tuple[str, ...]
    """Names of the weights that the adapter changes."""
    tied: bool
    """Whether the head is the embedding."""

    def map(self) -> dict[str, Callable[[], torch.Tensor]]:
        """Name -> how to make the tensor; a tied head is under its own name too."""
        made = {tensor.name: tensor.load for tensor in self.tensors}
        return made | ({HEAD: made[embedding_of(made)]} if self.tied else {})


def plan(base: Shards, adapter: Adapter | None, tied: bool, dtype: torch.dtype, rounding: Rounding = as_stored) -> Plan:
    """Every tensor of the merged model in the order of the base's files; `tied` says whether the base has no head of its own.

    A change of the head or the embedding alone unties them, unless the adapter was trained with both tied. Raises
    TunestationError when adapter and base do not fit.
    """
    if adapter is None:
        tensors = [_planned(base, name, name, None, None, dtype, rounding) for name in base.names]
        return Plan(tuple(tensors), base.release, (), tied)
    check(adapter, base, tied)
    changes = dict(adapter.changes)
    names = {name: name for name in base.names}
    if tied and not _changed_together(adapter, embedding_of(base)):
        names[HEAD], tied = embedding_of(base), False
    tensors = [_planned(base, name, source, changes.get(name), adapter, dtype, rounding) for name, source in names.items()]

    def release() -> None:
        base.release()
        adapter.tensors.release()

    return Plan(tuple(tensors), release, tuple(name for name in names if name in changes), tied)


def _changed_together(adapter: Adapter, embedding_name: str) -> bool:
    embedding, head = adapter.changes.get(embedding_name), adapter.changes.get(HEAD)
    if adapter.config.ensure_weight_tying or (embedding and "rows" in embedding.parts and not head):
        return True
    return embedding is None and head is None


def _planned(
    base: Shards, name: str, source: str, change: Change | None, adapter: Adapter | None, dtype: torch.dtype, rounding: Rounding
) -> Planned:
    stored = base.meta(source)
    kept = dtype if stored.is_floating_point() else stored.dtype
    rows = partial(_rows, base, name, source, change, adapter, kept, rounding)
    return Planned(name, stored.to(kept), lambda: _whole(rows()), rows)


def _whole(rows: Iterator[Piece]) -> torch.Tensor:
    made = [piece() for piece in rows]
    return made[0] if len(made) == 1 else torch.cat(made)


def _rows(
    base: Shards, name: str, source: str, change: Change | None, adapter: Adapter | None, dtype: torch.dtype, rounding: Rounding
) -> Iterator[Piece]:
    weight = rounding(source, base.read(source))
    made = pieces(weight, dtype) if change is None else merged(weight, change, adapter.tensors, dtype)
    return (partial(_named, name, piece) for piece in made)


def _named(name: str, piece: Piece) -> torch.Tensor:
    try:
        return piece()
    except ValueError:
        what = f"the merge made weights that are not finite, first {name}."
        remedy = "Lower train.learning_rate, or choose an export.dtype with a wider range."
        raise TunestationError(what, remedy=remedy) from None


def write(made: Plan, folder: Path, shard_size: str) -> None:
    """Write the shards. Complete shards of an interrupted run stay. Raises TunestationError when the disk has no room for them."""
    ready = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
    needed, free = sum(tensor.meta.nbytes for tensor in made.tensors) - ready, shutil.disk_usage(folder).free
    if needed > free:
        what = f"the merged model needs {amount(needed)} more, but only {amount(free)} are free."
        raise TunestationError(what, str(folder), "Free some space, or point TUNE_RUNS to a larger disk.")
    write_shards(made.tensors, folder, bytes_of(shard_size), made.release, hashed=False)


def bytes_of(size: str) -> int:
    """`2GB` -> 2,000,000,000."""
    return int(float(size[:-2]) * {"MB": 10**6, "GB": 10**9}[size[-2:]])
