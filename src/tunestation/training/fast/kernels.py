"""Triton kernels of the fast step. `ops` says what each computes; here is only how a GPU does it.

All of them are bound by memory traffic. They write into rows of any stride, because the products read inputs that carry the adapter's
share behind each row (see `projection`); that is why the kernels of a library do not fit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tunestation.training.fast.dropping_kernels import drawing, store_dropped
from tunestation.training.fast.grids import pieces, power_of_2


def _warps(columns: int) -> int:
    """Warps of a program that holds a whole row of `columns` in registers."""
    return 4 if columns <= 2048 else 8 if columns <= 8192 else 16


@triton.jit
def last_first():
    """The row of a program, from the last row on: those that a product has just written are still in the cache, and so are the first rows
    when the next product begins with them."""
    return (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)


@triton.jit
def _store_eight(value, eight, scales, row, at, columns, inside):
    """A whole row in 8 bits; `ops.quantise_rows` says how."""
    scale = tl.maximum(tl.max(tl.abs(value)), 1e-12) / 448.0
    tl.store(scales + row, scale)
    tl.store(eight + row * columns + at, (value / scale).to(eight.dtype.element_ty), inside)


def _drawing(drop, other) -> tuple:
    """Arguments of a kernel that may drop: where to, and `drawing`."""
    return (other, *drawing(0, 0)) if drop is None else (drop.out, *drawing(drop.p, drop.seed))


@triton.jit(do_not_specialize=["seed", "limit"])
def _rms_norm(
    h, weight, out, out_stride, eight, scales, dropped, seed, limit, share, columns, eps,
    EIGHT: tl.constexpr, DROP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = last_first()
    at = tl.arange(0, BLOCK)
    inside = at < columns
    x = tl.load(h + row * columns + at, inside, 0, eviction_policy="evict_first").to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x) / columns + eps)
    value = (x * scale * tl.load(weight + at, inside, 0).to(tl.float32)).to(out.dtype.element_ty)
    tl.store(out + row * out_stride + at, value, inside)
    if EIGHT:
        _store_eight(value.to(tl.float32), eight, scales, row, at, columns, inside)
    if DROP:
        store_dropped(value, dropped + row * columns, row, 0, columns, seed, limit, share, BLOCK)


def rms_norm(h, weight, eps, out, eight=None, drop=None) -> None:
    rows, columns = h.shape
    _rms_norm[(rows,)](
        h, weight, out, out.stride(0), *(eight or (h, h)), *_drawing(drop, h), columns, eps,
        EIGHT=eight is not None, DROP=drop is not None, BLOCK=power_of_2(columns), num_warps=_warps(columns),
    )  # fmt: skip


@triton.jit
def _rms_norm_backward(
    grad, h, weight, residual, residual_stride, out, out_stride, eight, scales, columns, eps,
    RESIDUAL: tl.constexpr, RESULT: tl.constexpr, EIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = last_first()
    at = tl.arange(0, BLOCK)
    inside = at < columns
    x = tl.load(h + row * columns + at, inside, 0, eviction_policy="evict_first").to(tl.float32)
    g = tl.load(grad + row * columns + at, inside, 0, eviction_policy="evict_first").to(tl.float32)
    g *= tl.load(weight + at, inside, 0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x) / columns + eps)
    unit = x * scale
    if RESULT:
        tl.store(grad + row * columns + at, unit * tl.load(weight + at, inside, 0).to(tl.float32), inside)
    result = scale * (g - unit * (tl.sum(g * unit) / columns))
    if RESIDUAL:
        result += tl.load(residual + row * residual_stride + at, inside, 0, eviction_policy="evict_first").to(tl.float32)
    result = result.to(out.dtype.element_ty)
    tl.store(out + row * out_stride + at, result, inside)
    if EIGHT:
        _store_eight(result.to(tl.float32), eight, scales, row, at, columns, inside)


def rms_norm_backward(grad, h, weight, eps, out, residual=None, eight=None, result=True) -> None:
    rows, columns = h.shape
    added = h if residual is None else residual
    _rms_norm_backward[(rows,)](
        grad, h, weight, added, added.stride(0), out, out.stride(0), *(eight or (h, h)), columns, eps,
        RESIDUAL=residual is not None, RESULT=result, EIGHT=eight is not None, num_warps=_warps(columns),
        BLOCK=power_of_2(columns),
    )  # fmt: skip


@triton.jit
def _copy_in_eight(x, eight, scale, columns: tl.constexpr, BLOCK: tl.constexpr):
    """A row that this program has just written, again in 8 bits."""
    tl.debug_barrier()
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        value = tl.load(x + at, at < columns, 0).to(tl.float32) / scale
        tl.store(eight + at, value.to(eight.dtype.element_ty), at < columns)


@triton.jit
def _activate(gate, GELU: tl.constexpr):
    """The activation and its slope; `ops` says which."""
    if GELU:
        z = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
        dz = 1.5957691216057308 * (1 + 0.134145 * gate * gate)
        sigmoid = tl.sigmoid(z)
        act = gate * sigmoid
        slope = sigmoid + act * (1 - sigmoid) * dz
    else:
        sigmoid = tl.sigmoid(gate)
        act = gate * sigmoid
        slope = sigmoid + act * (1 - sigmoid)
    return act, slope


@triton.jit
def _load_gate_up(row, at, columns):
    """Gate and up of columns `at` of a row."""
    inside = at < columns
    return tl.load(row + at, inside, 0).to(tl.float32), tl.load(row + columns + at, inside, 0).to(tl.float32)


@triton.jit(do_not_specialize=["seed", "limit"])
def _glu(
    gate_up, gate_up_row, out, out_stride, eight, scales, dropped, seed, limit, share, columns: tl.constexpr,
    GELU: tl.constexpr, EIGHT: tl.constexpr, DROP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([BLOCK], tl.float32)
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < columns
        gate, up = _load_gate_up(gate_up + row * gate_up_row, at, columns)
        act, _ = _activate(gate, GELU)
        value = (act * up).to(out.dtype.element_ty)
        tl.store(out + row * out_stride + at, value, inside)
        largest = tl.maximum(largest, tl.abs(value.to(tl.float32)))
        if DROP:
            store_dropped(value, dropped + row * columns, row, first, columns, seed, limit, share, BLOCK)
    if EIGHT:
        scale = tl.maximum(tl.max(largest), 1e-12) / 448.0
        tl.store(scales + row, scale)
        _copy_in_eight(out + row * out_stride, eight + row * columns, scale, columns, BLOCK)


def glu(gate_up, out, gelu, eight, drop=None) -> None:
    rows, columns = out.shape
    _glu[(rows,)](
        gate_up, gate_up.stride(0), out, out.stride(0), *(eight or (out, out)), *_drawing(drop, out), columns,
        GELU=gelu, EIGHT=eight is not None, DROP=drop is not None, BLOCK=2048, num_warps=8,
    )  # fmt: skip


@triton.jit
def _glu_backward(
    gate_up, gate_up_row, grad, out, out_stride, eight, scales, columns: tl.constexpr,
    GELU: tl.constexpr, RESULT: tl.constexpr, EIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([BLOCK], tl.float32)
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < columns
        gate, up = _load_gate_up(gate_up + row * gate_up_row, at, columns)
        act, slope = _activate(gate, GELU)
        g = tl.load(grad + row * columns + at, inside, 0).to(tl.float32)
        d_gate = (g * up * slope).to(out.dtype.element_ty)
        d_up = (g * act).to(out.dtype.element_ty)
        tl.store(out + row * out_stride + at, d_gate, inside)
        tl.store(out + row * out_stride + columns + at, d_up, inside)
        if RESULT:
            tl.store(grad + row * columns + at, act * up, inside)
        largest = tl.maximum(largest, tl.maximum(tl.abs(d_gate.to(tl.float32)), tl.abs(d_up.to(tl.float32))))
    if EIGHT:
        scale = tl.maximum(tl.max(largest), 1e-12) / 448.0
        tl.store(scales + row, scale)
        _copy_in_eight(out + row * out_stride, eight + row * 2 * columns, scale, 2 * columns, BLOCK)


def glu_backward(gate_up, grad, out, gelu, eight, result=True) -> None:
    rows, columns = grad.shape
    _glu_backward[(rows,)](
        gate_up, gate_up.stride(0), grad, out, out.stride(0), *(eight or (out, out)), columns,
        GELU=gelu, RESULT=result, EIGHT=eight is not None, BLOCK=4096, num_warps=16,
    )  # fmt: skip


@triton.jit(do_not_specialize=["seed", "limit"])
def _copy(
    x, x_row, out, out_row, eight, scales, dropped, seed, limit, share, columns,
    EIGHT: tl.constexpr, DROP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    value = tl.load(x + row * x_row + at, at < columns, 0)
    tl.store(out + row * out_row + at, value, at < columns)
    if EIGHT:
        _store_eight(value.to(tl.float32), eight, scales, row, at, columns, at < columns)
    if DROP:
        store_dropped(value, dropped + row * columns, row, 0, columns, seed, limit, share, BLOCK)


def copy(x, out, eight=None, drop=None) -> None:
    rows, columns = x.shape
    _copy[(rows,)](
        x, x.stride(0), out, out.stride(0), *(eight or (x, x)), *_drawing(drop, x), columns,
        EIGHT=eight is not None, DROP=drop is not None, BLOCK=power_of_2(columns), num_warps=_warps(columns),
    )  # fmt: skip


@triton.jit
def _add_up(parts, part, out, out_row, columns, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    row = last_first()
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < columns
    total = tl.load(out + row * out_row + at, inside, 0).to(tl.float32)
    for place in tl.static_range(PARTS):
        total += tl.load(parts + place * part + row * columns + at, inside, 0).to(tl.float32)
    tl.store(out + row * out_row + at, total, inside)


def add_up(parts, out) -> None:
    columns = out[0].numel()
    block = min(2048, power_of_2(columns))
    _add_up[(len(out), pieces(columns, block))](
        parts, parts.stride(0), out, out.stride(0), columns, PARTS=len(parts), BLOCK=block, num_warps=4
    )


@triton.jit
def _scatter(x, places, scale, out, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    value = tl.load(x + row * columns + at, at < columns, 0).to(tl.float32) * tl.load(scale)
    tl.store(out + tl.load(places + row) * columns + at, value, at < columns)


def scatter(x, places, scale, out) -> None:
    rows, columns = x.shape
    _scatter[(rows,)](x, places, scale, out, columns, BLOCK=power_of_2(columns), num_warps=_warps(columns))


@triton.jit
def _quantise_rows(x, x_row, out, scales, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    value = tl.load(x + row * x_row + at, at < columns, 0).to(tl.float32)
    _store_eight(value, out, scales, row, at, columns, at < columns)


def quantise_rows(x, out, scales) -> None:
    rows, columns = x.shape
    block = power_of_2(columns)
    _quantise_rows[(rows,)](x, x.stride(0), out, scales, columns, BLOCK=block, num_warps=min(32, max(4, block // 1024)))
