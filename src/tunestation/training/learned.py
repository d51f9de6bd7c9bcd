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
    """Of gradients once the first are there: DeepSpeed's bucket has room for all from then on. `held` included."""
    backward: float
    """Of gradients at the end of a backward pass, `held` included."""
    step: float
    """While the optimizer steps and no activations are there."""
    bucket: int = 0
    """Bytes, not of a weight but of all together, in which DeepSpeed collects gradients that it moves to host memory."""
    host: float = 0
    """Of host memory: the master copy, Adam's states, the gradient in fp32 and what is on its way in bfloat16."""


STATES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_32bit": 0}
"""Bytes of Adam's states for a weight that must stay on the GPU."""
OFFLOAD_BUCKET = 8_000_000
"""Gradients that DeepSpeed collects before it moves them to host memory."""


def learned(optimizer: str, zero_stage: int, offload: bool = False, ranks: int = 1, accumulates: bool = False) -> Learned:
    """Under ZeRO `zero_stage` on `ranks` GPUs; DeepSpeed's own weights are bfloat16 beside fp32 master copies, others fp32.

    Read in deepspeed 0.19.8, runtime/zero/stage_1_and_2.py: gradients go into a bucket, are copied, flattened, and turned to fp32.
    """
    states = STATES[optimizer]
    if not zero_stage:
        return Learned(4 + states, 4 * accumulates, 4 * accumulates, 4, 4)
    if offload:
        return Learned(HALF, 0, 0, 0, 0, HALF * OFFLOAD_BUCKET, (4 + (states or 8) + 4 + 2 * HALF) / ranks)
    held = HALF * accumulates / (ranks if zero_stage > 1 else 1)
    return Learned(HALF + (4 + states) / ranks, held, HALF + held, HALF + held, 8 / ranks)
