"""Checkpoints that are complete or absent, and reading them without trusting pickles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from pickle import UnpicklingError

from tunestation.errors import TunestationError

STAMP = "checkpoint.json"
SAVING = ".saving"
JOINED = "joined_adapters"
"""What a decoder layer, and so a checkpoint, calls its adapters as one weight."""


@dataclass(frozen=True)
class World:
    """The processes that train: their checkpoints fit no other world."""

    processes: int
    nodes: int
    micro_batch_size: int
    zero_stage: int
    joined: bool
    """Whether adapters are one weight a layer for the optimizer."""

    def __str__(self) -> str:
        nodes = f" on {self.nodes} nodes" if self.nodes > 1 else ""
        one = ", adapters as one weight a layer" if self.joined else ""
        return f"{self.processes} process(es){nodes}, micro batch {self.micro_batch_size}, ZeRO-{self.zero_stage}{one}"


@dataclass(frozen=True)
class Stamp:
    """What a complete checkpoint says of itself."""

    step: int
    world_size: int
    """A checkpoint of several processes can only be resumed by as many."""
    micro_batch_size: int
    zero_stage: int
    held_out_loss: float | None
    """Mean over held-out labelled tokens; None when none are held out."""
    nodes: int = 1
    """Each node has the part of its own processes. Not written when it is 1, as whatever is as a default says."""
    joined: bool = False
    """Whether the optimizer has one weight a layer."""
    in_order: str = ""
    """What has summed all gradients up to here in one order on a GPU (`Fast.made_by`), if anything has; older ones say true."""

    def in_one_order(self, by: str) -> str:
        """What has summed all gradients in one order once training has gone on `by` this; nothing, if the first were summed otherwise."""
        return by if self.in_order == by else ""


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints below `folder`, by step."""
    found = [path for path in folder.glob("checkpoint-*") if (path / STAMP).is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def stamp_of(checkpoint: Path) -> Stamp:
    """The stamp of a complete checkpoint."""
    return Stamp(**json.loads((checkpoint / STAMP).read_text(encoding="utf-8")))


def seal(saving: Path, folder: Path, stamp: Stamp) -> None:
    """Publish what was saved below `saving` as a complete checkpoint."""
    (saved,) = saving.glob("checkpoint-*")
    written = {field.name: value for field in fields(stamp) if (value := getattr(stamp, field.name)) != field.default}
    (saved / STAMP).write_text(json.dumps(written, sort_keys=True) + "\n", encoding="utf-8")
    shutil.rmtree(folder / saved.name, ignore_errors=True)
    saved.rename(folder / saved.name)
    shutil.rmtree(saving)


def prune(folder: Path, keep: int, save_steps: int) -> None:
    """Keep the newest checkpoints, `keep` of them, and the best.

    One that was asked for between two multiples of `save_steps` goes as soon as a newer one is there: a training that was
    stopped and went on keeps the same checkpoints as one that ran through.
    """
    *older, newest = complete(folder)
    planned = [path for path in older if stamp_of(path).step % save_steps == 0]
    kept = {*[*planned, newest][-keep:], best_of([*planned, newest])}
    for path in older:
        if path not in kept:
            shutil.rmtree(path)


def best_of(checkpoints: list[Path]) -> Path | None:
    """The one with the lowest held-out loss; None when nothing was held out."""
    losses = {path: stamp_of(path).held_out_loss for path in checkpoints}
    known = {path: loss for path, loss in losses.items() if loss is not None}
    return min(known, key=known.__getitem__) if known else None


def to_resume(folder: Path, world: World, least: Callable[[int], int] = int) -> Path | None:
    """The newest complete checkpoint that every node has; incomplete and newer ones are removed. Raises if it belongs to another world.

    `least` gives the smallest of the numbers that all processes call it with; a process alone needs none.
    """
    every = {stamp_of(path).step: path for path in complete(folder)}
    step = newest_common(every, least)
    for path in [folder / SAVING, *folder.glob("checkpoint-*")]:
        if path not in [every[kept] for kept in every if kept <= step]:
            shutil.rmtree(path, ignore_errors=True)
    if not step:
        return None
    stamp = stamp_of(every[step])
    before = World(stamp.world_size, stamp.nodes, stamp.micro_batch_size, stamp.zero_stage, stamp.joined)
    if before != world:
        remedy = "Go on with the same version, number of processes and runtime settings, or start over with --force."
        raise TunestationError(f"training was interrupted at step {step} with {before}; this run has {world}.", remedy=remedy)
    return every[step]


def newest_common(steps: Collection[int], least: Callable[[int], int]) -> int:
    """The largest of `steps` that every process has, 0 if there is none: a node may have been killed before it had its newest."""
    bound = least(max(steps, default=0))
    while bound and not least(int(bound in steps)):
        bound = least(max((step for step in steps if step < bound), default=0))
    return bound


@contextmanager
def trusted_classes_only(checkpoint: Path | None) -> Iterator[None]:
    """DeepSpeed reads its shards with a pickle that may run code; here it may only name the classes it really stores.

    Python 3.11.0 to 3.11.3 write an enum as a call of getattr, which no safe reader allows: here it is written by value, as by others.
    Raises TunestationError when `checkpoint`, read inside, names others.
    """
    import torch
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    def load(_self: object, path: str, map_location: object = None) -> object:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            return torch.load(path, map_location=map_location, weights_only=True)

    unsafe, by_name = TorchCheckpointEngine.load, ZeroStageEnum.__reduce_ex__
    TorchCheckpointEngine.load = load
    ZeroStageEnum.__reduce_ex__ = lambda member, _protocol: (ZeroStageEnum, (member.value,))
    try:
        yield
    except UnpicklingError:
        what = "this checkpoint holds objects that no training writes; they were not loaded."
        raise TunestationError(what, str(checkpoint), "Delete it to go on from an earlier one, or start over with --force.") from None
    finally:
        TorchCheckpointEngine.load, ZeroStageEnum.__reduce_ex__ = unsafe, by_name
