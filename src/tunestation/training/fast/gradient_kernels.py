"""Triton kernels for gradients of adapters: sums over all tokens, narrow on one side, so bound by reading the other.

A matrix library takes a launch for each of a projection's A and B, and a second one where it splits the sum; for 67 MB that is half as long
again as reading them takes. Here one launch makes the parts of all sums of a projection, and a second one adds them up, in one order.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from tunestation.training.fast.grids import pieces, power_of_2
from tunestation.training.fast.low_rank_kernels import ample

MANY_ROWS = 8192
"""Tokens from which this is faster; with fewer the host decides, and a library's launches take less of its time."""
WIDEST, MEMBERS = 128, 3
"""Largest rank, and how many adapted members a projection may have."""
BLOCK, STEP = 128, 64
"""Columns and tokens of a tile."""


def fits(x: torch.Tensor, members: list[tuple[slice, slice]]) -> bool:
    """Whether these kernels are for such rows and adapters."""
    many = len(x) >= MANY_ROWS and x.dtype == torch.bfloat16 and ample(x.device)
    return many and len(members) <= MEMBERS and max(_ranks(members)) <= WIDEST


def _ranks(members: list[tuple[slice, slice]]) -> list[int]:
    return [ranks.stop - ranks.start for _, ranks in members]


@triton.jit
def _pick(index, first, second, third):
    return tl.where(index == 0, first, tl.where(index == 1, second, third))


@triton.jit
def _place(tile, n0, n1, n2, K: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Of a tile: whether it is one of A's, its member, and its first column. Tiles of A that read the same columns are neighbours."""
    of_a = ((K + BLOCK - 1) // BLOCK) * COUNT
    beyond = tile - of_a
    tiles0, tiles1 = (n0 + BLOCK - 1) // BLOCK, (n1 + BLOCK - 1) // BLOCK
    is_a = tile < of_a
    b_member = (beyond >= tiles0).to(tl.int32) + (beyond >= tiles0 + tiles1).to(tl.int32)
    b_first = (beyond - _pick(b_member, 0, tiles0, tiles0 + tiles1)) * BLOCK
    return is_a, tl.where(is_a, tile % COUNT, b_member), tl.where(is_a, tile // COUNT * BLOCK, b_first)


@triton.jit
def _parts(
    x, x_row, grads, grads_row, tail, tail_row, parts, rows, piece, outputs, n0, n1, n2, s0, s1, s2, r0, r1, r2,
    K: tl.constexpr, COUNT: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    is_a, member, first = _place(tile, n0, n1, n2, K, COUNT, BLOCK)
    column, at = first + tl.arange(0, BLOCK)[None, :], tl.arange(0, RANK)[None, :]
    rank, first_rank = _pick(member, r0, r1, r2), _pick(member, 0, r0, r0 + r1)
    if is_a:
        wide, wide_row, columns = x, x_row, K
        narrow, narrow_row = grads + outputs + first_rank, grads_row
    else:
        wide, wide_row, columns = grads + _pick(member, s0, s1, s2), grads_row, _pick(member, n0, n1, n2)
        narrow, narrow_row = tail + first_rank, tail_row
    start = tl.program_id(1) * piece
    end = tl.minimum(start + piece, rows)
    total = tl.zeros([BLOCK, RANK], tl.float32)
    for token in tl.range(start, end, STEP, num_stages=STAGES):
        row = (token + tl.arange(0, STEP)[:, None]).to(tl.int64)
        left = tl.load(wide + row * wide_row + column, (row < end) & (column < columns), 0)
        right = tl.load(narrow + row * narrow_row + at, (row < end) & (at < rank), 0)
        total = tl.dot(tl.trans(left), right, total)
    place = (tl.program_id(1) * tl.num_programs(0) + tile).to(tl.int64) * BLOCK * RANK
    tl.store(parts + place + tl.arange(0, BLOCK)[:, None] * RANK + at, total)


@triton.jit
def _add_up(
    parts, a, b0, b1, b2, n0, n1, n2, r0, r1, r2, count,
    K: tl.constexpr, COUNT: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """PART columns of a tile, from `count` parts."""
    tile, offset = tl.program_id(0), tl.program_id(1) * PART
    is_a, member, first = _place(tile, n0, n1, n2, K, COUNT, BLOCK)
    local, at = offset + tl.arange(0, PART)[:, None], tl.arange(0, RANK)[None, :]
    total = tl.zeros([PART, RANK], tl.float32)
    for index in range(count):
        total += tl.load(parts + (index * tl.num_programs(0) + tile).to(tl.int64) * BLOCK * RANK + local * RANK + at)
    rank, column = _pick(member, r0, r1, r2), first + local
    if is_a:
        row = _pick(member, 0, r0, r0 + r1) + tl.arange(0, RANK)[:, None]
        across = first + offset + tl.arange(0, PART)[None, :]
        tl.store(a + row * K + across, tl.trans(total), (tl.arange(0, RANK)[:, None] < rank) & (across < K))
    else:
        b = b0
        if member == 1:
            b = b1
        if member == 2:
            b = b2
        tl.store(b + column * rank + at, total, (column < _pick(member, n0, n1, n2)) & (at < rank))


@cache
def _room(device: torch.device) -> int:
    """Programs that run at a time: two on each multiprocessor; Triton's interpreter has one."""
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@cache
def splits(tiles: int, rows: int, room: int) -> int:
    """In how many pieces tokens are summed: few, that fill what runs at a time."""
    most = max(1, min(8, rows // 1024))
    return max(range(1, most + 1), key=lambda count: (round(tiles * count / (room * pieces(tiles * count, room)), 1), -count))


def gradients(grads, outputs, x, tail, a, b, members) -> None:
    width, sizes, ranks = x.shape[1], [len(each) for each in b], _ranks(members)
    tiles = pieces(width, BLOCK) * len(ranks) + sum(pieces(size, BLOCK) for size in sizes)
    count = splits(tiles, len(x), _room(x.device))
    piece = pieces(pieces(len(x), count), STEP) * STEP
    rank = max(16, power_of_2(max(ranks)))
    parts = torch.empty(count * tiles * BLOCK * rank, dtype=torch.float32, device=x.device)
    n, s, r = _three(sizes), _three([columns.start for columns, _ in members]), _three(ranks)
    fixed = {"K": width, "COUNT": len(ranks), "RANK": rank, "BLOCK": BLOCK}
    _parts[(tiles, count)](
        x, x.stride(0), grads, grads.stride(0), tail, tail.stride(0), parts, len(x), piece, outputs, *n, *s, *r,
        **fixed, STEP=STEP, **({"STAGES": 4, "num_warps": 4} if rank <= 64 else {"STAGES": 3, "num_warps": 8}),
    )  # fmt: skip
    _add_up[(tiles, 4)](parts, a, *_three(b, a), *n, *r, count, **fixed, PART=BLOCK // 4, num_warps=4)


def _three(values: list, nothing: object = 0) -> tuple:
    return (*values, nothing, nothing, nothing)[:3]
