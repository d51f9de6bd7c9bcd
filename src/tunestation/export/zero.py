"""Weights out of DeepSpeed ZeRO checkpoints of any stage and world size, on a CPU, one weight at a time.

How the shards lie is read from deepspeed/utils/zero_to_fp32.py: ZeRO-1 and 2 cut the concatenation of all weights into one
piece a rank, ZeRO-3 cuts every weight. The optimizer's float32 copies are read, not the 16-bit ones of the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from tunestation.errors import InputError
from tunestation.export import pickles
from tunestation.models.shards import Planned

RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_(\d+)_(optim|model)_states\.pt$")


def shard_folder(checkpoint: Path) -> Path | None:
    """The folder of a checkpoint's shards: itself, or the `global_step<N>` that `latest` names; None if there are none."""
    latest = checkpoint / "latest"
    folder = checkpoint / latest.read_text(encoding="utf-8").strip() if latest.is_file() else checkpoint
    return folder if any(folder.glob("*_states.pt")) else None


def model_states(folder: Path) -> dict:
    """What the first rank stored beside its shard: names, shapes, and what the training program added."""
    files = [folder / name for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")]
    found = next((path for path in files if path.is_file()), None)
    if found is None:
        raise InputError("holds no model states of rank 0 (mp_rank_00_model_states.pt).", str(folder), "Copy the whole folder.")
    return pickles.load(found)


def read(folder: Path) -> list[Planned]:
    """Every weight that learned, in float32, loaded when its turn comes. Raises InputError for shards missing, short or strange."""
    try:
        return _weights(folder)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"holds other states than DeepSpeed writes ({type(error).__name__}: {error})."
        raise InputError(what, str(folder), "Copy the whole folder again, from training with ZeRO-1, 2 or 3.") from None


def _weights(folder: Path) -> list[Planned]:
    states = model_states(folder)
    shards = [pickles.load(path)["optimizer_state_dict"] for path in _optimizer_files(folder)]
    if not shards:  # stage 0 shards nothing
        return [_planned(name, weight.shape, weight.float) for name, weight in states["module"].items()]
    stage, world = int(shards[0]["zero_stage"]), shards[0]["partition_count"]
    world = max(world) if isinstance(world, list) else world
    if len(shards) != world:
        what = f"holds the optimizer states of {len(shards)} processes, but {world} trained."
        raise InputError(what, str(folder), "Copy the *_optim_states.pt of every process, from all machines.")
    found, length = (_whole_weights if stage == 3 else _whole_groups)(states["param_shapes"], shards)
    if length > 0:
        what = f"the shards lack {length:,} of the numbers that they should hold."
        raise InputError(what, str(folder), "Copy the folder again; use an earlier checkpoint if that does not help.")
    return found


def _planned(name: str, shape: Sequence[int], load: Callable[[], torch.Tensor]) -> Planned:
    return Planned(name, torch.empty(tuple(shape), device="meta"), lambda: load().reshape(tuple(shape)))


def _optimizer_files(folder: Path) -> list[Path]:
    found = ((RANK.search(path.name), path) for path in folder.glob("*_optim_states.pt"))
    ranked = [(int(match[1]), path, match[2]) for match, path in found if match]
    if any(model_rank != "00" for _, _, model_rank in ranked):
        raise InputError("was trained with model parallelism, which is not supported.", str(folder))
    return [path for _, path, _ in sorted(ranked)]


def _whole_groups(groups: list[dict], shards: list[dict]) -> tuple[list[Planned], int]:
    """ZeRO-1 and 2: for each group of weights, one long vector in as many pieces as there were processes. Also: numbers lacking."""
    paddings, found, lacking = shards[0].get("param_alignment_paddings"), [], 0
    for number, shapes in enumerate(groups):
        pieces = [shard["single_partition_of_fp32_groups"][number] for shard in shards]
        gaps = paddings[number] if paddings else [0] * len(shapes)
        start = end = 0
        for (name, shape), gap in zip(shapes.items(), gaps, strict=True):
            found.append(_planned(name, shape, partial(_part, pieces, start, shape.numel())))
            end = start + shape.numel()
            start = end + gap
        lacking += max(0, end - sum(map(len, pieces)))
    return found, lacking


def _whole_weights(groups: list[dict], shards: list[dict]) -> tuple[list[Planned], int]:
    """ZeRO-3: each process holds its piece of every weight, the last one padded. Also: numbers lacking."""
    start, found, each = 0, [], [shard["fp32_flat_groups"] for shard in shards]
    for name, shape in ((name, shape) for shapes in groups for name, shape in shapes.items()):
        piece = math.ceil(shape.numel() / len(shards))
        found.append(_planned(name, shape, partial(_joined, each, start, piece, shape.numel())))
        start += piece
    return found, sum(max(0, start - sum(map(len, pieces))) for pieces in each)


def _joined(each: list[list[torch.Tensor]], start: int, piece: int, length: int) -> torch.Tensor:
    return torch.cat([_part(pieces, start, piece) for pieces in each])[:length]


def _part(pieces: list[torch.Tensor], start: int, length: int) -> torch.Tensor:
    """Elements start..start+length of `pieces` laid end to end, as a copy."""
    found = []
    for piece in pieces:
        some = piece[start : start + length]
        found.append(some)
        start, length = max(0, start - len(piece)), length - len(some)
    return torch.cat(found)
