"""The loss by QuACK (Apache-2.0) on Hopper GPUs: a row of logits stays in the shared memory of a cluster, so that it is read once.

On an H200 it takes 17 to 28 % less time than our kernel, which reads each row twice, and is as exact.
"""

from __future__ import annotations

from functools import cache

import torch

from tunestation.training.fast import hopper


@cache
def known(device: torch.device, dtype: torch.dtype, vocabulary: int) -> bool:
    """Whether it is here, and right for rows of so many logits, which it reads 16 bytes at a time."""
    if vocabulary % 8 or not hopper.has(device, dtype, "quack-kernels"):
        return False
    return hopper.agrees(device, "QuACK's kernels of the loss", "ours is taken", lambda on: _agree(on, vocabulary))


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor) -> None:
    """As `ops.cross_entropy`."""
    from quack.cross_entropy import cross_entropy_fwd_out

    cross_entropy_fwd_out(logits, targets, None, losses, None, logits, None)


def _agree(device: torch.device, vocabulary: int) -> bool:
    """Whether a few losses and gradients are those that torch makes in fp32 on a CPU."""
    from tunestation.training.fast import ops

    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(16, vocabulary, generator=generator)).bfloat16()
    targets = torch.randint(vocabulary, (16,), generator=generator)
    found = []
    for where, dtype, kernel in ((torch.device("cpu"), torch.float32, ops.cross_entropy), (device, logits.dtype, cross_entropy)):
        mine, losses = logits.to(where, dtype, copy=True), torch.empty(len(targets), device=where)
        kernel(mine, targets.to(where), losses)
        found.append((mine, losses))
    return hopper.near(*found)
