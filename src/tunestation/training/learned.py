"""What weights that learn take beside themselves: master copies, Adam's states, gradients, and their shares under ZeRO. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

HALF = 2
"""Bytes of a bfloat16."""


@dataclass(frozen=True)
class Learned:
    """Bytes of a weight that learns, on one GPU."""

    resident: float
    """Always: the weight, its master copy and Adam's states. Paged states may leave the GPU and are not counted."""
    held: float
    """Of gradients between the micro-batches of a step."""
    early: float
    """Of gradients once the first are there: DeepSpeed's bucket is whole from then on. `held` included."""
    backward: float
    """Of gradients at the end of a backward pass, `held` included."""
    step: float
    """While the optimizer steps and no activations are there."""
    bucket: int = 0
    """Bytes, not of a weight but of all together, in which DeepSpeed collects gradients that it moves to host memory."""
    optimizer: float = 0
    """Of `resident`: the master copy, under DeepSpeed, and Adam's states."""
    host: float = 0
    """Of host memory: the master copy, Adam's states, the gradient in fp32 and what is on its way in bfloat16."""


STATES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_32bit": 0}
"""Bytes of Adam's states for a weight that must stay on the GPU."""
BUCKET, OFFLOAD_BUCKET = 200_000_000, 8_000_000
"""Gradients that DeepSpeed collects before it reduces them, and before it moves them to host memory."""
FLATTENED, SUB_GROUP = 500_000_000, 1_000_000_000
"""Gradients that DeepSpeed without ZeRO flattens at once, and weights that its ZeRO-3 updates at once."""


def learned(
    optimizer: str, zero_stage: int | None, offload: str = "none", ranks: int = 1, accumulates: bool = False, weights: int = 1
) -> Learned:
    """Of each of `weights` under ZeRO `zero_stage` on `ranks` GPUs; None is a step without DeepSpeed, whose weights are fp32.

    DeepSpeed's own are bfloat16 beside fp32 master copies. Read in deepspeed 0.19.8 (runtime/zero/stage_1_and_2.py, stage3.py,
    runtime/fp16/unfused_optimizer.py) and counted on a CPU, tensor by tensor: tests/pipeline/test_plan_counts.py. A step holds an fp32
    gradient and the square root of Adam's second state; ZeRO-3 goes through it by sub-groups, and keeps gradients in a buffer of their own.
    """
    states, one, share = STATES[optimizer], int(accumulates), 1 / ranks
    if zero_stage is None:
        return Learned(4 + states, 4 * one, 4 * one, 4, 4, optimizer=states)
    if zero_stage == 0:
        flattened = HALF * min(1, FLATTENED / weights)
        return Learned(HALF + 4 + states, HALF * one, HALF * one, HALF + flattened, HALF + 8, optimizer=4 + states)
    if offload != "none":
        own = 0 if offload == "all" else HALF * (share if zero_stage == 3 else 1)
        return Learned(own, 0, 0, 0, 0, HALF * OFFLOAD_BUCKET, host=(4 + (states or 8) + 4 + 2 * HALF) * share)
    bucket, mine = HALF * min(1, BUCKET / weights), (4 + states) * share
    if zero_stage == 1:  # gradients stay whole until the step
        held, backward = (HALF + bucket) * one, HALF + bucket + HALF * share
        return Learned(HALF + mine, held, bucket + HALF * one, backward, 8 * share, optimizer=mine)
    if zero_stage == 2:
        held = HALF * one * share
        backward = bucket * (2 - share) + HALF * share + held  # what other GPUs get of a bucket is laid together once more
        return Learned(HALF + mine, held, bucket + held, backward, 8 * share, optimizer=mine)
    step = 8 * min(share, SUB_GROUP / weights)
    return Learned(2 * HALF * share + mine + bucket, 0, 2 * bucket, 2 * bucket, step, optimizer=mine)
