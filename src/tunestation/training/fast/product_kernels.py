"""Triton kernels beside the products: weights before them, what is added to them, and the loss. `ops` and `nf4` say what each computes."""

from __future__ import annotations

import triton
import triton.language as tl

from tunestation.training.fast.grids import pieces, power_of_2
from tunestation.training.fast.launches import Repeatable


@triton.jit
def _nf4_blocks(
    packed, code, scale_codes, code2, scales2, offset, out, out_row, columns, block, end, NESTED: tl.constexpr, RAGGED: tl.constexpr
):
    """Blocks of 64 weights to rows of `out`, those before weight `end`; `RAGGED`: a block may go over the end of a row or of all."""
    first = block.to(tl.int64) * 64
    inside = first < end
    if NESTED:
        index = tl.load(scale_codes + block, inside, 0)
        scale = tl.load(code2 + index) * tl.load(scales2 + block // 256, inside, 0) + tl.load(offset)
    else:
        scale = tl.load(scale_codes.to(tl.pointer_type(tl.float32)) + block, inside, 0)
    pair = block[:, None] * 32 + tl.arange(0, 32)[None, :]
    byte = tl.load(packed + pair, pair * 2 < end if RAGGED else inside[:, None], 0)
    high = tl.load(code + (byte >> 4)) * scale[:, None]
    low = tl.load(code + (byte & 15)) * scale[:, None]
    at = tl.arange(0, 64)[None, :]
    if RAGGED:
        weight = first[:, None] + at
        tl.store(out + weight // columns * out_row + weight % columns, tl.interleave(high, low), weight < end)
    else:
        start = first // columns * out_row + first % columns
        tl.store(out + start[:, None] + at, tl.interleave(high, low), inside[:, None])


@triton.jit
def _nf4(
    packed, code, scale_codes, code2, scales2, offset, out, out_row, columns, weights,
    NESTED: tl.constexpr, RAGGED: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    _nf4_blocks(packed, code, scale_codes, code2, scales2, offset, out, out_row, columns, block, weights, NESTED, RAGGED)


def dequantise_nf4(packed, code, scale_codes, nested, out) -> None:
    code2, scales2, offset = nested or (code, code, code)
    _nf4[(pieces(out.numel(), 4096),)](
        packed, code, scale_codes, code2, scales2, offset, out, out.stride(0), out.shape[1], out.numel(),
        NESTED=nested is not None, RAGGED=out.shape[1] % 64 != 0, BLOCKS=64, num_warps=4,
        enable_fp_fusion=False,  # a fused multiply-add would round once where bitsandbytes rounds twice
    )  # fmt: skip


@triton.jit
def _member_of(row, first, second, third):
    """Which of three parts laid one behind the other holds `row`, and where that part starts."""
    member = (row >= first).to(tl.int32) + (row >= first + second).to(tl.int32)
    return member, tl.where(member == 0, 0, tl.where(member == 1, first, first + second))


@triton.jit
def _fill_base(
    table, out, out_row, program, N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr,
    NESTED: tl.constexpr, PAIRED: tl.constexpr,
):  # fmt: skip
    """4096 weights of one member."""
    element = program.to(tl.int64) * 4096
    member, start = _member_of(element // K, N0, N1, N2)
    first = element - start.to(tl.int64) * K
    block = (first // 64).to(tl.int32) + tl.arange(0, 64)
    entry = table + member * 8
    packed, scale_codes = tl.load(entry).to(tl.pointer_type(tl.uint8)), tl.load(entry + 2).to(tl.pointer_type(tl.uint8))
    code, code2 = tl.load(entry + 1).to(tl.pointer_type(tl.float32)), tl.load(entry + 3).to(tl.pointer_type(tl.float32))
    scales2, offset = tl.load(entry + 4).to(tl.pointer_type(tl.float32)), tl.load(entry + 5).to(tl.pointer_type(tl.float32))
    target = out + (member if PAIRED else start).to(tl.int64) * out_row
    step = 2 * out_row if PAIRED else out_row
    packed = tl.multiple_of(packed, 16)  # as torch allocates; else bytes would be read one by one
    _nf4_blocks(packed, code, scale_codes, code2, scales2, offset, target, step, K, block, first + 4096, NESTED, K % 64 != 0)


@triton.jit
def _fill_b(
    table, out, out_row, program, s0, s1, s2, N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,
    R0: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr, FLOAT: tl.constexpr, RANK: tl.constexpr, PAIRED: tl.constexpr,
):  # fmt: skip
    """32 rows of sB, with zeros in the columns of other members."""
    row = program * 32 + tl.arange(0, 32)
    member, start = _member_of(row, N0, N1, N2)
    first = tl.where(member == 0, 0, tl.where(member == 1, R0, R0 + R1))
    rank = tl.where(member == 0, R0, tl.where(member == 1, R1, R2))
    scale = tl.where(member == 0, s0, tl.where(member == 1, s1, s2))
    b = tl.load(table + member * 8 + 7, row < N0 + N1 + N2, 0).to(tl.pointer_type(FLOAT))
    column = tl.arange(0, RANK)[None, :]
    local = column - first[:, None]
    inside = (row < N0 + N1 + N2)[:, None] & (column < R0 + R1 + R2)
    mine = inside & (local >= 0) & (local < rank[:, None])
    value = tl.load(b[:, None] + (row - start)[:, None] * rank[:, None] + local, mine, 0).to(tl.float32) * scale[:, None]
    place = (row - start) * 2 + member if PAIRED else row
    tl.store(out + place.to(tl.int64)[:, None] * out_row + column, value, inside)


@triton.jit
def _fill_a(
    table, target, row, R0: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr, K: tl.constexpr, FLOAT: tl.constexpr, BLOCK: tl.constexpr
):
    """One row of A."""
    member, first = _member_of(row, R0, R1, R2)
    a = tl.load(table + member * 8 + 6).to(tl.pointer_type(FLOAT)) + (row - first) * K
    for start in range(0, K, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(target + at, tl.load(a + at, at < K, 0), at < K)


@triton.jit
def _fill(
    table, out, out_row, b, b_row, a, a_row, programs, s0, s1, s2, N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,
    R0: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr, K: tl.constexpr,
    NESTED: tl.constexpr, FLOAT: tl.constexpr, RANK: tl.constexpr, PAIRED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    beyond = program - programs
    tiles = (N0 + N1 + N2 + 31) // 32
    if program < programs:
        _fill_base(table, out, out_row, program, N0, N1, N2, K, NESTED, PAIRED)
    elif beyond < tiles:
        _fill_b(table, b, b_row, beyond, s0, s1, s2, N0, N1, N2, R0, R1, R2, FLOAT, RANK, PAIRED)
    else:
        target = a + (beyond - tiles).to(tl.int64) * a_row
        _fill_a(table, target, beyond - tiles, R0, R1, R2, K, FLOAT, BLOCK)


def fill(table, buffer, sizes, ranks, scales, nested, wide, paired) -> Repeatable:
    """Base weights and adapters to `buffer` in one launch, which can be made again; `table` holds addresses as `weights` lays them."""
    a, b, base, outputs, rank = buffer.a, buffer.b, buffer.base, sum(sizes), sum(ranks)
    columns = a.shape[1]
    programs = outputs * columns // 4096
    return Repeatable(
        _fill, programs + _adapter_pieces(outputs, rank),
        table, base, base.stride(0), b, b.stride(0), a, a.stride(0), programs,
        *_three(scales, 0.0), *_three(sizes, 0), *_three(ranks, 0), columns,
        NESTED=nested, FLOAT=tl.float32 if wide else tl.bfloat16, RANK=power_of_2(rank), PAIRED=paired, BLOCK=2048,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def _adapter_pieces(outputs: int, rank: int) -> int:
    return pieces(outputs, 32) + rank if rank else 0


@triton.jit
def _fill_adapters(
    tables, entries, targets, like, b_row, a_row, programs, s0, s1, s2, N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,
    R0: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr, K: tl.constexpr,
    FLOAT: tl.constexpr, RANK: tl.constexpr, PAIRED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """As `_fill` without base weights, for several buffers of the type of `like`, `programs` each."""
    buffer, program = tl.program_id(0) // programs, tl.program_id(0) % programs
    table, tiles = tables + buffer * entries, (N0 + N1 + N2 + 31) // 32
    if program < tiles:
        b = tl.load(targets + buffer * 2).to(tl.pointer_type(like.dtype.element_ty))
        _fill_b(table, b, b_row, program, s0, s1, s2, N0, N1, N2, R0, R1, R2, FLOAT, RANK, PAIRED)
    else:
        a = tl.load(targets + buffer * 2 + 1).to(tl.pointer_type(like.dtype.element_ty))
        _fill_a(table, a + (program - tiles).to(tl.int64) * a_row, program - tiles, R0, R1, R2, K, FLOAT, BLOCK)


def fill_adapters(tables, targets, like, sizes, ranks, scales, wide, paired) -> Repeatable | None:
    """Adapters to several buffers that lie as `like`, in one launch, which can be made again; None if there are none.

    For each buffer `tables` holds a table of addresses, and `targets` where its B and A are.
    """
    a, b, count = like.a, like.b, _adapter_pieces(sum(sizes), sum(ranks))
    if not count:
        return None
    return Repeatable(
        _fill_adapters, len(tables) * count,
        tables, tables.shape[1], targets, b, b.stride(0), a.stride(0), count,
        *_three(scales, 0.0), *_three(sizes, 0), *_three(ranks, 0), a.shape[1],
        FLOAT=tl.float32 if wide else tl.bfloat16, RANK=power_of_2(sum(ranks)), PAIRED=paired, BLOCK=2048,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def _three(values: list, nothing: float) -> tuple:
    return (*values, nothing, nothing)[:3]


@triton.jit
def _cross_entropy(logits, targets, losses, columns: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * columns
    target = tl.load(targets + row)
    highest = -float("inf")
    total = 0.0
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(start + at, at < columns, -float("inf")).to(tl.float32)
        top = tl.maximum(highest, tl.max(x))
        total = total * tl.exp(highest - top) + tl.sum(tl.exp(x - top))
        highest = top
    log_total = highest + tl.log(total)
    tl.store(losses + row, log_total - tl.load(start + target).to(tl.float32))
    tl.debug_barrier()
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(start + at, at < columns, -float("inf")).to(tl.float32)
        tl.store(start + at, tl.exp(x - log_total) - (at == target).to(tl.float32), at < columns)


def cross_entropy(logits, targets, losses) -> None:
    _cross_entropy[(len(logits),)](logits, targets, losses, logits.shape[1], BLOCK=4096, num_warps=8)
