"""Writes DeepSpeed checkpoints as DeepSpeed lays them out, for any stage and number of processes."""

from collections import OrderedDict
from pathlib import Path

import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum


def write_zero(folder: Path, weights: dict, stage: int, world: int, **client: object) -> None:
    """`weights` in float32 as shards; `client` is what the training program adds to the model states."""
    folder.mkdir()
    shapes = [OrderedDict((name, weight.shape) for name, weight in weights.items())]
    states = {"module": {}, "buffer_names": [], "param_shapes": shapes, "shared_params": {}, "ds_version": "0.14.0", **client}
    for rank, flat in enumerate(_by_weight(weights, world) if stage == 3 else _as_one(weights, world)):
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        optimizer = {"zero_stage": ZeroStageEnum(stage), "partition_count": world, "loss_scaler": LossScaler(1.0), key: [flat]}
        prefix = "" if stage == 3 else "bf16_"
        torch.save({"optimizer_state_dict": optimizer}, folder / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if stage == 3:
            torch.save(states, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    if stage < 3:
        torch.save(states, folder / "mp_rank_00_model_states.pt")


def _as_one(weights: dict, world: int) -> list[torch.Tensor]:
    flat = torch.cat([weight.float().flatten() for weight in weights.values()])
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % (2 * world)))  # DeepSpeed aligns to twice the number of processes
    return list(flat.chunk(world))


def _by_weight(weights: dict, world: int) -> list[torch.Tensor]:
    padded = [torch.nn.functional.pad(weight.float().flatten(), (0, -weight.numel() % world)).chunk(world) for weight in weights.values()]
    return [torch.cat([pieces[rank] for pieces in padded]) for rank in range(world)]
