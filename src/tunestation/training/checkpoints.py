"""Checkpoints that are complete or absent, and reading them without trusting pickles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError

from tunestation.errors import TunestationError

STAMP = "checkpoint.json"
SAVING = ".saving"


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


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints below `folder`, by step."""
    found = [path for path in folder.glob("checkpoint-*") if (path / STAMP).is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def stamp_of(checkpoint: Path) -> Stamp:
    """The stamp of a complete checkpoint."""
    return Stamp(**json.loads((checkpoint / STAMP).read_text(encoding="utf-8")))


def seal(saving: Path, folder: Path, stamp: Stamp, keep: int, save_steps: int) -> None:
    """Publish what was saved below `saving` as a complete checkpoint; of the others stay the `keep` newest and the best.

    One that was asked for between two multiples of `save_steps` goes as soon as a newer one is there: a training that was
    stopped and went on keeps the same checkpoints as one that ran through.
    """
    (saved,) = saving.glob("checkpoint-*")
    (saved / STAMP).write_text(json.dumps(asdict(stamp), sort_keys=True) + "\n", encoding="utf-8")
    shutil.rmtree(folder / saved.name, ignore_errors=True)
    saved.rename(folder / saved.name)
    shutil.rmtree(saving)
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


def to_resume(folder: Path, world_size: int, micro_batch_size: int, zero_stage: int) -> Path | None:
    """The newest complete checkpoint; incomplete ones are removed. Raises if it belongs to another world."""
    every = complete(folder)
    for path in [folder / SAVING, *(path for path in folder.glob("checkpoint-*") if path not in every)]:
        shutil.rmtree(path, ignore_errors=True)
    newest = (every or [None])[-1]
    if newest is None:
        return None
    stamp = stamp_of(newest)
    before = (stamp.world_size, stamp.micro_batch_size, stamp.zero_stage)
    if before != (world_size, micro_batch_size, zero_stage):
        then = f"{before[0]} process(es), micro batch {before[1]}, ZeRO-{before[2]}"
        now = f"{world_size} process(es), micro batch {micro_batch_size}, ZeRO-{zero_stage}"
        remedy = "Go on with the same number of processes and runtime settings, or start over with --force."
        raise TunestationError(f"training was interrupted at step {stamp.step} with {then}; this run has {now}.", remedy=remedy)
    return newest


@contextmanager
def trusted_classes_only(checkpoint: Path | None) -> Iterator[None]:
    """DeepSpeed reads its shards with a pickle that may run code; here it may only name the classes it really stores.

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

    unsafe = TorchCheckpointEngine.load
    TorchCheckpointEngine.load = load
    try:
        yield
    except UnpicklingError:
        what = "this checkpoint holds objects that no training writes; they were not loaded."
        raise TunestationError(what, str(checkpoint), "Delete it to go on from an earlier one, or start over with --force.") from None
    finally:
        TorchCheckpointEngine.load = unsafe
