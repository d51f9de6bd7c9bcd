"""The DeepSpeed configuration of a recipe, made from it or checked against it. No torch here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunestation.errors import InputError, Problem
from tunestation.training.learned import BUCKET, OFFLOAD_BUCKET


def accumulation_steps(global_batch_size: int, micro: int, world: int) -> int:
    """Micro-batches that each process adds up in a step. Raises InputError if the batch cannot be shared evenly."""
    if global_batch_size % (micro * world):
        what = f"train.global_batch_size {global_batch_size} cannot be shared by {world} process(es) with micro batches of {micro}."
        raise InputError(what, remedy="Change runtime.micro_batch_size, or set TUNE_PROCESSES.")
    return global_batch_size // (micro * world)


def make(stage: int, offload: str, micro: int, accumulation: int, max_grad_norm: float) -> dict:
    """A configuration for ZeRO `stage`; the bucket sizes are set later, when the trainable weights are counted."""
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True, "overlap_comm": False}
    if offload in ("optimizer", "all"):
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": max_grad_norm,
        # a loss that is no number ends training anyway; looking at each gradient for it costs thousands of launches a step
        "bf16": {"enabled": True, "check_grad_overflow": False},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # torch's and bitsandbytes' optimizers have CPU kernels of their own; DeepSpeed's would need a compiler at run time
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        # it would have the host wait twice a step until the GPU has nothing left to do, and the GPU then for the host
        "timers": {"throughput": {"enabled": False}},
    }


def set_buckets(config: dict, trainable: int) -> None:
    """Size communication buckets to the trainable weights unless the user has; DeepSpeed's default of 5e8 elements takes gigabytes.

    Gradients that go to host memory leave in small portions: who offloads is short of memory.
    """
    zero = config["zero_optimization"]
    size = max(1, min(trainable, OFFLOAD_BUCKET if "offload_optimizer" in zero else BUCKET))
    for name in ("reduce_bucket_size", "allgather_bucket_size"):
        if zero.get(name, "auto") == "auto":
            zero[name] = size


def set_gathering(config: dict, a_layer: int) -> None:
    """Let ZeRO-3 bring together the weights of two layers at once, unless the user says how many; DeepSpeed's default of 1e9 is 2 GB.

    A layer's weights stay until they have been used again, as when it is computed again.
    """
    zero = config["zero_optimization"]
    limits = {"stage3_prefetch_bucket_size": a_layer, "stage3_max_reuse_distance": a_layer, "stage3_max_live_parameters": 2 * a_layer}
    config["zero_optimization"] = zero | {name: size for name, size in limits.items() if zero.get(name, "auto") == "auto"}


def merge_users(path: Path, made: dict) -> dict:
    """The user's JSON with what it leaves open (absent or "auto") taken from `made`. Raises InputError on contradictions."""
    try:
        users = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("there is no such DeepSpeed configuration.", str(path), "It is looked for beside the recipe.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"this DeepSpeed configuration cannot be read: {error}.", str(path), "It must be JSON.") from None
    wrong = _misshapen(users, made) or _contradictions(users, made)
    if wrong:
        raise InputError(problems=[Problem(what, str(path), "Change it there or in the recipe.") for what in wrong])
    merged = _fill(users, made)
    return {name: value for name, value in merged.items() if name not in ("fp16", "train_batch_size")}


def _misshapen(users: Any, made: dict) -> list[str]:
    if not isinstance(users, dict):
        return ["the configuration is not a JSON object."]
    objects = ("fp16", *(name for name, value in made.items() if isinstance(value, dict)))
    return [f"{name} is {users[name]!r}, not an object." for name in objects if not isinstance(users.get(name, {}), dict)]


def _contradictions(users: dict, made: dict) -> list[str]:
    wrong = [f"'{name}' is set, but the recipe decides it (section train)." for name in ("optimizer", "scheduler") if name in users]
    for name in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"):
        if users.get(name, "auto") not in ("auto", made[name]):
            wrong.append(f"{name} is {users[name]}, but the recipe makes it {made[name]}.")
    if users.get("train_batch_size", "auto") != "auto":
        wrong.append("train_batch_size is set, but the recipe decides it (train.global_batch_size).")
    stage = users.get("zero_optimization", {}).get("stage", "auto")
    if stage not in ("auto", made["zero_optimization"]["stage"]):
        wrong.append(f"zero_optimization.stage is {stage}, but runtime.zero_stage is {made['zero_optimization']['stage']}.")
    if users.get("bf16", {}).get("enabled", "auto") not in ("auto", True):
        wrong.append("bf16 is switched off, but Tunestation trains in bfloat16.")
    if users.get("fp16", {}).get("enabled", "auto") not in ("auto", False):
        wrong.append("fp16 is switched on, but Tunestation trains in bfloat16.")
    return wrong


def _fill(users: dict, made: dict) -> dict:
    result = {**made, **users}
    for name, value in made.items():
        if isinstance(value, dict):
            result[name] = _fill(users.get(name, {}), value)
        elif users.get(name) == "auto":
            result[name] = value
    return result
