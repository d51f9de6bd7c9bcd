"""DeepSpeed's clipping without waiting: three times a step its host waits until the GPU knows the norm of all gradients, and then the GPU
until it is given work again. Here the same arithmetic stays on the GPU, to the bit, while the host goes on to the next micro-batch.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch


class Clips(Protocol):
    """DeepSpeed's optimizer of ZeRO 1 and 2 (0.19.8), as far as it clips."""

    clip_grad: float
    """The largest norm; 0 clips nothing."""
    loss_scale: float


def without_waiting(optimizer: Clips) -> None:
    """Let DeepSpeed's ZeRO `optimizer` clip by the functions below."""
    from deepspeed.runtime.zero import stage_1_and_2

    stage_1_and_2.mask_nan_or_inf_with_val_inplace = mask_invalid
    optimizer.unscale_and_clip_grads = partial(unscale_and_clip, optimizer)


def mask_invalid(norm: torch.Tensor, device: torch.device | None = None, val: float = -1.0) -> None:
    """A norm that is no finite number becomes `val`, in place; `device` is there as DeepSpeed gives it."""
    norm.masked_fill_(~norm.isfinite(), val)


def unscale_and_clip(optimizer: Clips, gradients: list, norm: torch.Tensor | float) -> None:
    """Divide `gradients` (flat ones, or lists of them) so that their `norm` is the largest allowed; by infinity if it is no number.

    Then gradients that are no numbers make weights and the next loss such, which ends training; all others become 0, as with DeepSpeed.
    """
    if optimizer.clip_grad == 0.0 and optimizer.loss_scale == 1.0:
        return
    scale = optimizer.loss_scale
    if optimizer.clip_grad > 0.0:
        norm = torch.as_tensor(norm, dtype=torch.float32)
        norm = torch.where(norm.isfinite() & (norm >= 0), norm, torch.inf)
        scale = torch.clamp((norm / optimizer.loss_scale + 1e-6) / optimizer.clip_grad, min=1.0) * optimizer.loss_scale
    for gradient in gradients:
        for each in gradient if isinstance(gradient, list) else [gradient]:
            each.data.mul_(1.0 / scale)
