"""Dropout of what adapters read, drawn anew wherever it is needed: a mask is a function of its seed and stored nowhere.

Shapes: T tokens of a micro-batch, K columns. Written out in torch, for CPUs and as the definition; on a GPU Triton kernels draw the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Dropped(NamedTuple):
    """Where a result is to be written with dropout."""

    out: torch.Tensor
    """[T, K], rows one behind the other."""
    p: float
    seed: int
    """Below 2^31."""

    def draw(self, x: torch.Tensor) -> torch.Tensor:
        """Write x [T, K] with dropout to `out`, and hand that over."""
        dropout(x, self.p, self.seed, self.out)
        return self.out


def dropout(x: torch.Tensor, p: float, seed: int, out: torch.Tensor) -> None:
    """out [T, K] = x with each value kept with probability 1 - p, to 16 bits, and divided by 1 - p, or 0.

    Which are kept depends on `seed` (below 2^31) and place alone, so a backward pass draws the same again. Rows of both may be strided.
    """
    if x.is_cuda:
        from tunestation.training.fast import dropping_kernels

        return dropping_kernels.dropout(x, p, seed, out)
    out.copy_(dropped(x, p, seed))


def dropped(x: torch.Tensor, p: float, seed: int) -> torch.Tensor:
    """`dropout` of x, in fp32."""
    rows, columns = x.shape
    kept = draws(rows, columns, seed, x.device) >= limit(p)
    return torch.where(kept, x.float() * (1 / (1 - p)), 0.0)


def draws(rows: int, columns: int, seed: int, device: torch.device) -> torch.Tensor:
    """16 random bits for each place [rows, columns]: two neighbours share a hash of 32, for a GPU would else be busy with hashing alone."""
    pairs = (columns + 1) // 2
    mixed = _mix(_mix(torch.arange(rows * pairs, device=device) & 0xFFFFFFFF) ^ seed)
    return torch.stack([mixed & 0xFFFF, mixed >> 16], 1).view(rows, 2 * pairs)[:, :columns]


def limit(p: float) -> int:
    """What is drawn below it is dropped."""
    return min(round(p * 2**16), 2**16 - 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """A hash of 32-bit integers in which every bit of the input reaches every bit of the result (C. Wellons' lowbias32, public domain)."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & 0xFFFFFFFF
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)
