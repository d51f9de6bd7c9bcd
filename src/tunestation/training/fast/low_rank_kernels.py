"""Triton kernels of adapters beside their base product: narrow on one side, so bound by memory traffic. `ops` says what each computes.

Dropout of a result is drawn inside of them.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from tunestation.training.fast.dropping_kernels import drawing, kept
from tunestation.training.fast.grids import pieces, power_of_2


@triton.jit
def _load_right(b, b_stride, at, first_column, columns, COLUMNS: tl.constexpr, RANK: tl.constexpr, TURNED: tl.constexpr):
    """Rows `at` of b' [STEP, COLUMNS]; whichever way b lies, neighbours in memory are read together."""
    if TURNED:
        column = first_column + tl.arange(0, COLUMNS)[None, :]
        right = tl.load(b + column + at[:, None] * b_stride, (column < columns) & (at[:, None] < RANK), 0)
    else:
        column = first_column + tl.arange(0, COLUMNS)[:, None]
        right = tl.load(b + column * b_stride + at[None, :], (column < columns) & (at[None, :] < RANK), 0).T
    return right


@triton.jit(do_not_specialize=["seed", "limit"])
def _add_low_rank(
    y, y_row, other, other_row, tail, tail_row, b, b_stride, rows, columns, seed, limit, share,
    ONTO: tl.constexpr, ADD: tl.constexpr, DROP: tl.constexpr, TURNED: tl.constexpr, RANK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, STRIP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A strip of tiles, one below the other: the next ones are on their way while one is computed."""
    first_column = tl.program_id(1) * COLUMNS
    column = first_column + tl.arange(0, COLUMNS)[None, :]
    held = _load_right(b, b_stride, tl.arange(0, STEP), first_column, columns, COLUMNS, RANK, TURNED)
    for tile in tl.range(0, STRIP, num_stages=STAGES):
        row = (tl.program_id(0).to(tl.int64) * STRIP + tile) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & (column < columns)
        place = y + row * y_row + column
        if ONTO:
            before = tl.load(place, inside, 0)  # in 16 bits until the end: registers decide how many tiles run at once
        if ADD:
            summand = tl.load(other + row * other_row + column, inside, 0)
        at = tl.arange(0, STEP)
        left = tl.load(tail + row * tail_row + at[None, :], (row < rows) & (at[None, :] < RANK), 0)
        product = tl.dot(left, held)
        for first in tl.static_range(STEP, RANK, STEP):
            at = first + tl.arange(0, STEP)
            left = tl.load(tail + row * tail_row + at[None, :], (row < rows) & (at[None, :] < RANK), 0)
            right = _load_right(b, b_stride, at, first_column, columns, COLUMNS, RANK, TURNED)
            product = tl.dot(left, right, product)
        if DROP:
            product = tl.where(kept(row, first_column, tl.arange(0, COLUMNS)[None, :], columns, seed, limit), product * share, 0.0)
        if ONTO:
            product += before.to(tl.float32)
        if ADD:
            product += summand.to(tl.float32)
        tl.store(place, product, inside)


@cache
def ample(device: torch.device) -> bool:
    """Whether a program has 227 KiB of shared memory, as on data centre GPUs since Hopper; on others it may be 64."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (9, 10)


def _tiles(rows: int, rank: int, ahead: bool, added: bool, drop: bool) -> dict[str, int]:
    """Sizes that were fastest on an H200: 3.4 to 3.6 of 4.2 TB/s at ranks up to 64, 2.7 at 128, 2.4 at 192; with dropout, which takes
    registers, 3.6, 2.6 and 1.9, and where nothing is read, 2.3, 1.5 and 1.0.

    Tiles on their way take shared memory: if they may be there `ahead`, a program has a strip of tiles, shorter where rows are few.
    """
    sizes = {"COLUMNS": 128, "STEP": min(64, max(16, power_of_2(rank))), "num_warps": 4}
    if not ahead or rank > (128 if added else 192):
        return sizes | {"ROWS": 64, "STRIP": 1, "STAGES": 1}
    strip = 16 if rows >= 8192 else 4 if rows >= 2048 else 1
    return sizes | {"ROWS": 32 if drop and rank > 128 else 64, "STRIP": strip, "STAGES": 2 if drop and rank > 64 else 3}


def add_low_rank(y, tail, b, added=None, p=0.0, seed=0) -> None:
    _launch(y, tail, b, added, p, seed, onto=True)


def dropped_low_rank(tail, b, out, p, seed) -> None:
    _launch(out, tail, b, None, p, seed, onto=False)


def _launch(y, tail, b, added, p, seed, onto) -> None:
    rows, columns = y.shape
    other, tiles = y if added is None else added, _tiles(rows, b.shape[1], ample(y.device), added is not None, p > 0)
    _add_low_rank[(pieces(rows, tiles["ROWS"] * tiles["STRIP"]), pieces(columns, tiles["COLUMNS"]))](
        y, y.stride(0), other, other.stride(0), tail, tail.stride(0), b, max(b.stride()), rows, columns, *drawing(p, seed),
        ONTO=onto, ADD=added is not None, DROP=p > 0, TURNED=b.stride(1) != 1, RANK=b.shape[1], **tiles,
    )  # fmt: skip
