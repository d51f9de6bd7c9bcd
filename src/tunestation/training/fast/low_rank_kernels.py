"""Triton kernels of adapters beside their base product: narrow on one side, so bound by memory traffic. `ops` says what each computes.

Dropout of a result is drawn inside of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tunestation.training.fast.kernels import _kept


@triton.jit(do_not_specialize=["seed", "limit"])
def _add_low_rank(
    y, y_row, other, other_row, tail, tail_row, b, b_stride, scale, rows, columns, seed, limit,
    ADD: tl.constexpr, DROP: tl.constexpr, TURNED: tl.constexpr, RANK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < columns)
    place = y + row * y_row + column
    before = tl.load(place, inside, 0)  # in 16 bits until the end: registers decide how many tiles run at once
    if ADD:
        summand = tl.load(other + row * other_row + column, inside, 0)
    product = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, RANK, STEP):
        at = first + tl.arange(0, STEP)
        left = tl.load(tail + row * tail_row + at[None, :], (row < rows) & (at[None, :] < RANK), 0)
        if TURNED:  # whichever way b lies, neighbours in memory are read together
            right = tl.load(b + column + at[:, None] * b_stride, (column < columns) & (at[:, None] < RANK), 0)
        else:
            across = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
            right = tl.load(b + across * b_stride + at[None, :], (across < columns) & (at[None, :] < RANK), 0).T
        product = tl.dot(left, right, product)
    product *= scale
    if DROP:
        product = tl.where(_kept(row, column, columns, seed, limit), product, 0.0)
    product += before.to(tl.float32)
    if ADD:
        product += summand.to(tl.float32)
    tl.store(place, product, inside)


def add_low_rank(y, tail, b, scale, added=None, p=0.0, seed=0) -> None:
    rows, columns = y.shape
    other = y if added is None else added
    _add_low_rank[(triton.cdiv(rows, 64), triton.cdiv(columns, 128))](
        y, y.stride(0), other, other.stride(0), tail, tail.stride(0), b, max(b.stride()), scale / (1 - p), rows, columns,
        seed, int(p * 2**32), ADD=added is not None, DROP=p > 0, TURNED=b.stride(1) != 1, RANK=b.shape[1],
        ROWS=64, COLUMNS=128, STEP=64 if b.shape[1] >= 64 else 16, num_warps=4, num_stages=1,
    )  # fmt: skip
