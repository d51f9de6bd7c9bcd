"""Triton kernels that turn queries and keys, and normalise them where a family does. `ops` says what each computes."""

from __future__ import annotations

import triton
import triton.language as tl

from tunestation.training.fast import low_rank_kernels
from tunestation.training.fast.grids import pieces, power_of_2
from tunestation.training.fast.kernels import _copy_in_eight, last_first


@triton.jit
def _rotate(x, x_row, x_head, out, out_row, out_head, cos, sin, table_row, heads, half, sign, HEADS: tl.constexpr, HALF: tl.constexpr):
    row = last_first()
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    at = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (at < half)
    c = tl.load(cos + row * table_row + at, at < half, 0).to(tl.float32)
    s = tl.load(sin + row * table_row + at, at < half, 0).to(tl.float32) * sign
    a = tl.load(x + row * x_row + head * x_head + at, inside, 0).to(tl.float32)
    b = tl.load(x + row * x_row + head * x_head + half + at, inside, 0).to(tl.float32)
    tl.store(out + row * out_row + head * out_head + at, a * c - b * s, inside)
    tl.store(out + row * out_row + head * out_head + half + at, b * c + a * s, inside)


def rotate(x, cos, sin, out, sign) -> None:
    rows, heads, size = x.shape
    _rotate[(rows, pieces(heads, 8))](
        x, x.stride(0), x.stride(1), out, out.stride(0), out.stride(1), cos, sin, cos.stride(0), heads, size // 2, sign,
        HEADS=8, HALF=power_of_2(size // 2), num_warps=4,
    )  # fmt: skip


@triton.jit
def _norm_rotate(
    grad, grad_row, grad_head, x, x_row, x_head, out, out_row, out_head, weight, eps, cos, sin, table_row, heads, half,
    BACKWARD: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = last_first()
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    at = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (at < half)
    c = tl.load(cos + row * table_row + at, at < half, 0).to(tl.float32)
    s = tl.load(sin + row * table_row + at, at < half, 0).to(tl.float32)
    weight_a, weight_b = tl.load(weight + at, at < half, 0).to(tl.float32), tl.load(weight + half + at, at < half, 0).to(tl.float32)
    a = tl.load(x + row * x_row + head * x_head + at, inside, 0).to(tl.float32)
    b = tl.load(x + row * x_row + head * x_head + half + at, inside, 0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(a * a + b * b, 1) / (2 * half) + eps)[:, None]
    a, b = a * scale, b * scale
    if BACKWARD:
        g = tl.load(grad + row * grad_row + head * grad_head + at, inside, 0).to(tl.float32)
        h = tl.load(grad + row * grad_row + head * grad_head + half + at, inside, 0).to(tl.float32)
        g, h = (g * c + h * s) * weight_a, (h * c - g * s) * weight_b
        mean = (tl.sum(g * a + h * b, 1) / (2 * half))[:, None]
        a, b = scale * (g - a * mean), scale * (h - b * mean)
    else:
        a, b = a * weight_a, b * weight_b
        a, b = a * c - b * s, b * c + a * s
    tl.store(out + row * out_row + head * out_head + at, a, inside)
    tl.store(out + row * out_row + head * out_head + half + at, b, inside)


def norm_rotate(x, weight, eps, cos, sin, out) -> None:
    _launch_norm_rotate(x, x, weight, eps, cos, sin, out, False)


def norm_rotate_backward(grad, x, weight, eps, cos, sin, out) -> None:
    _launch_norm_rotate(grad, x, weight, eps, cos, sin, out, True)


def _launch_norm_rotate(grad, x, weight, eps, cos, sin, out, backward) -> None:
    rows, heads, size = x.shape
    strides = [(part, part.stride(0), part.stride(1)) for part in (grad, x, out)]
    _norm_rotate[(rows, pieces(heads, 8))](
        *(value for stride in strides for value in stride), weight, eps, cos, sin, cos.stride(0), heads, size // 2,
        BACKWARD=backward, HEADS=8, HALF=power_of_2(size // 2), num_warps=4,
    )  # fmt: skip


@triton.jit
def _turn_head_back(
    x, x_head, out, first, c, s, heads: tl.constexpr, half: tl.constexpr, size: tl.constexpr,
    HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Heads from `first` on of one row of gradients; returns the largest of each head."""
    head = first + tl.arange(0, HEADS)[:, None]
    at = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (at < half)
    a = tl.load(x + head * x_head + at, inside, 0).to(tl.float32)
    b = tl.load(x + head * x_head + half + at, inside, 0).to(tl.float32)
    a, b = (a * c + b * s).to(out.dtype.element_ty), (b * c - a * s).to(out.dtype.element_ty)
    tl.store(out + head * size + at, a, inside)
    tl.store(out + head * size + half + at, b, inside)
    largest = tl.max(tl.maximum(tl.abs(a.to(tl.float32)), tl.abs(b.to(tl.float32))), 1)
    if size > 2 * half:
        rest = 2 * half + tl.arange(0, REST)[None, :]
        still = tl.load(x + head * x_head + rest, (head < heads) & (rest < size), 0)
        tl.store(out + head * size + rest, still, (head < heads) & (rest < size))
        largest = tl.maximum(largest, tl.max(tl.abs(still.to(tl.float32)), 1))
    return largest


@triton.jit
def _turn_back(
    q, q_row, q_head, k, k_row, k_head, v, v_row, v_head, out, out_row, eight, scales, cos, sin, table_row,
    Q: tl.constexpr, KV: tl.constexpr, half: tl.constexpr, size: tl.constexpr, EIGHT: tl.constexpr,
    HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = last_first()
    at = tl.arange(0, HALF)[None, :]
    c = tl.load(cos + row * table_row + at, at < half, 0).to(tl.float32)
    s = tl.load(sin + row * table_row + at, at < half, 0).to(tl.float32)
    target = out + row * out_row
    largest = tl.zeros([HEADS], tl.float32)
    for first in range(0, Q, HEADS):
        found = _turn_head_back(q + row * q_row, q_head, target, first, c, s, Q, half, size, HEADS, HALF, REST)
        largest = tl.maximum(largest, found)
    for first in range(0, KV, HEADS):
        found = _turn_head_back(k + row * k_row, k_head, target + Q * size, first, c, s, KV, half, size, HEADS, HALF, REST)
        largest = tl.maximum(largest, found)
    for first in range(0, KV, HEADS):  # values do not turn: by an angle of which the cosine is 1
        found = _turn_head_back(
            v + row * v_row, v_head, target + (Q + KV) * size, first, 1.0, 0.0, KV, half, size, HEADS, HALF, REST
        )
        largest = tl.maximum(largest, found)
    if EIGHT:
        columns: tl.constexpr = (Q + 2 * KV) * size
        scale = tl.maximum(tl.max(largest), 1e-12) / 448.0
        tl.store(scales + row, scale)
        _copy_in_eight(target, eight + row * columns, scale, columns, BLOCK)


def turn_back(grads, cos, sin, out, eight=None) -> None:
    size, half = grads[0].shape[2], cos.shape[1]
    strides = [(grad, grad.stride(0), grad.stride(1)) for grad in grads]
    _turn_back[(len(out),)](
        *(value for stride in strides for value in stride), out, out.stride(0), *(eight or (out, out)), cos, sin, cos.stride(0),
        Q=grads[0].shape[1], KV=grads[1].shape[1], half=half, size=size, EIGHT=eight is not None,
        HEADS=8, HALF=power_of_2(half), REST=power_of_2(size - 2 * half), BLOCK=2048, num_warps=4,
    )  # fmt: skip


@triton.jit
def _heads_back(
    rows, at_row, tail, b, b_row, c, s, inside, heads: tl.constexpr, rest, part, at_part, PARTS: tl.constexpr, RANK: tl.constexpr,
    R: tl.constexpr, HALF: tl.constexpr, TURNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`heads` of a tile of rows, the first of which starts at `rows`: parts added, turned back in place, and their share to `tail`."""
    at, rank = tl.arange(0, HALF)[None, :], tl.arange(0, R)[None, :]
    place, more, weights = rows + at_row + at, rest + at_part + at, b + tl.arange(0, HALF)[:, None] * b_row + rank
    total = tl.zeros([c.shape[0], R], tl.float32)
    for head in tl.range(0, heads, num_stages=STAGES):
        first, second = place + head * 2 * HALF, place + head * 2 * HALF + HALF
        x, y = tl.load(first, inside, 0), tl.load(second, inside, 0)
        weight = tl.load(weights + head * 2 * HALF * b_row, rank < RANK, 0)
        other = tl.load(weights + (head * 2 + 1) * HALF * b_row, rank < RANK, 0)
        if TURNS or PARTS > 0:
            u, v = x.to(tl.float32), y.to(tl.float32)
            for index in tl.static_range(PARTS):
                u += tl.load(more + index * part + head * 2 * HALF, inside, 0).to(tl.float32)
                v += tl.load(more + index * part + head * 2 * HALF + HALF, inside, 0).to(tl.float32)
            if TURNS:
                u, v = u * c + v * s, v * c - u * s
            x, y = u.to(x.dtype), v.to(x.dtype)
            tl.store(first, x, inside)
            tl.store(second, y, inside)
        total = tl.dot(x, weight, total)
        total = tl.dot(y, other, total)
    tl.store(tail + rank, total, inside & (rank < RANK))


@triton.jit
def _turn_back_in_place(
    rows, row, outputs, b, b_row, cos, sin, table_row, tokens, rest_k, rest_v, part, PARTS: tl.constexpr, Q: tl.constexpr, KV: tl.constexpr,
    R0: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    token = last_first() * ROWS + tl.arange(0, ROWS)[:, None]
    inside = token < tokens
    at = token * table_row + tl.arange(0, HALF)[None, :]
    c, s = tl.load(cos + at, inside, 0).to(tl.float32), tl.load(sin + at, inside, 0).to(tl.float32)
    tail, keys, values = rows + outputs + token * row, 2 * HALF * Q, 2 * HALF * (Q + KV)
    here, there = token * row, token * (2 * HALF * KV)
    _heads_back(rows, here, tail, b, b_row, c, s, inside, Q, rest_k, part, there, 0, R0, R, HALF, True, STAGES)
    b += keys * b_row + R0
    _heads_back(rows + keys, here, tail + R0, b, b_row, c, s, inside, KV, rest_k, part, there, PARTS, R1, R, HALF, True, STAGES)
    b += (values - keys) * b_row + R1
    _heads_back(rows + values, here, tail + R0 + R1, b, b_row, c, s, inside, KV, rest_v, part, there, PARTS, R2, R, HALF, False, STAGES)


def fits(size, ranks, cos) -> bool:
    """Whether `turn_back_in_place` is for such heads and adapters."""
    return cos.shape[1] * 2 == size and size in (32, 64, 128) and max(ranks) <= 64 and low_rank_kernels.ample(cos.device)


def turn_back_in_place(rows, outputs, heads, ranks, b, cos, sin, rest) -> None:
    rest_k, rest_v = rest or (rows, rows)
    _turn_back_in_place[(pieces(len(rows), 64),)](
        rows, rows.stride(0), outputs, b, b.stride(0), cos, sin, cos.stride(0), len(rows), rest_k, rest_v, rest_k.stride(0),
        PARTS=len(rest_k) if rest else 0, Q=heads[0], KV=heads[1], R0=ranks[0], R1=ranks[1], R2=ranks[2],
        R=max(16, power_of_2(max(ranks))), HALF=cos.shape[1], ROWS=64, num_warps=4,
        STAGES=2 if rest else 3,  # else there is room for one block alone beside the parts
    )  # fmt: skip
