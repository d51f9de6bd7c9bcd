"""Triton's part of `dropping`: a mask drawn in registers, by each kernel that wants it."""

from __future__ import annotations

import triton
import triton.language as tl

from tunestation.training.fast import dropping
from tunestation.training.fast.grids import pieces


def drawing(p, seed) -> tuple:
    """Arguments of a kernel that drops: seed, limit, and what a kept value is multiplied with."""
    return seed, dropping.limit(p), 1 / (1 - p)


@triton.jit
def _multiply_bits(x):
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x


@triton.jit
def kept(row, first, at, columns, seed, limit):
    """Which of the columns `first` + `at` are kept, as `dropping.draws` draws; `first` is even.

    Where its two hashes meet, shifts cancel but for the seed's. `at` is a range from 0 on, so that the compiler sees that two neighbours,
    which one thread has, share a hash.
    """
    pair, seed = (row * ((columns + 1) // 2) + first // 2).to(tl.uint32) + (at >> 1).to(tl.uint32), seed.to(tl.uint32)
    x = _multiply_bits(_multiply_bits(pair ^ (pair >> 16)) ^ (seed ^ (seed >> 16)))
    x ^= x >> 16
    return tl.where((at & 1) == 0, x & 0xFFFF, x >> 16) >= limit.to(tl.uint32)


@triton.jit
def store_dropped(value, target, row, first, columns, seed, limit, share, BLOCK: tl.constexpr):
    """BLOCK columns from `first` on of a row, which starts at `target`, with dropout."""
    at = tl.arange(0, BLOCK)
    left = tl.where(kept(row, first, at, columns, seed, limit), value.to(tl.float32) * share, 0.0)
    tl.store(target + first + at, left, first + at < columns)


@triton.jit(do_not_specialize=["seed", "limit"])
def _dropout(x, x_row, out, out_row, columns, seed, limit, share, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    at = first + tl.arange(0, BLOCK)
    value = tl.load(x + row * x_row + at, at < columns, 0)
    store_dropped(value, out + row * out_row, row, first, columns, seed, limit, share, BLOCK)


def dropout(x, p, seed, out) -> None:
    rows, columns = x.shape
    _dropout[(rows, pieces(columns, 2048))](x, x.stride(0), out, out.stride(0), columns, *drawing(p, seed), BLOCK=2048, num_warps=8)
