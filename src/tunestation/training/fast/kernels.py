"""Triton kernels of the fast step. `ops` says what each computes; here is only how a GPU does it.

All of them are bound by memory traffic. They write into rows of any stride, because the products read inputs that carry the adapter's
share behind each row (see `projection`); that is why the kernels of a library do not fit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tunestation.training.fast.grids import pieces, power_of_2


def _warps(columns: int) -> int:
    """Warps of a program that holds a whole row of `columns` in registers."""
    return 4 if columns <= 2048 else 8 if columns <= 8192 else 16


@triton.jit
def _store_eight(value, eight, scales, row, at, columns, inside):
    """A whole row in 8 bits; `ops.quantise_rows` says how."""
    scale = tl.maximum(tl.max(tl.abs(value)), 1e-12) / 448.0
    tl.store(scales + row, scale)
    tl.store(eight + row * columns + at, (value / scale).to(eight.dtype.element_ty), inside)


@triton.jit
def _multiply_bits(x):
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x


@triton.jit
def _kept(row, column, columns, seed, limit):
    """Which places dropout keeps, as `ops.dropout` numbers them. Where its two hashes meet, shifts cancel but for the seed's."""
    index, seed = (row * columns).to(tl.uint32) + column.to(tl.uint32), seed.to(tl.uint32)
    x = _multiply_bits(_multiply_bits(index ^ (index >> 16)) ^ (seed ^ (seed >> 16)))
    return (x ^ (x >> 16)) >= limit.to(tl.uint32)


@triton.jit
def _store_dropped(value, target, row, at, columns, seed, limit, share, inside):
    """What a row holds at `at` to `target`, where the row starts, with dropout; `ops.dropout` says how."""
    kept = tl.where(_kept(row, at, columns, seed, limit), value.to(tl.float32) * share, 0.0)
    tl.store(target + at, kept, inside)


def drawing(p, seed) -> tuple:
    """Arguments of a kernel that drops: seed, limit, and what a kept value is multiplied with."""
    return seed, int(p * 2**32), 1 / (1 - p)


def _drawing(dropped, other) -> tuple:
    """The same of a kernel that may drop, behind where to."""
    return (other, *drawing(0, 0)) if dropped is None else (dropped.out, *drawing(dropped.p, dropped.seed))


@triton.jit(do_not_specialize=["seed", "limit"])
def _rms_norm(
    h, added, weight, total, out, out_stride, eight, scales, dropped, seed, limit, share, columns, eps,
    ADD: tl.constexpr, EIGHT: tl.constexpr, DROP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    x = tl.load(h + row * columns + at, inside, 0).to(tl.float32)
    if ADD:
        x = (x + tl.load(added + row * columns + at, inside, 0).to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + row * columns + at, x, inside)
        x = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x) / columns + eps)
    value = (x * scale * tl.load(weight + at, inside, 0).to(tl.float32)).to(out.dtype.element_ty)
    tl.store(out + row * out_stride + at, value, inside)
    if EIGHT:
        _store_eight(value.to(tl.float32), eight, scales, row, at, columns, inside)
    if DROP:
        _store_dropped(value, dropped + row * columns, row, at, columns, seed, limit, share, inside)


def rms_norm(h, weight, eps, out, added, total, eight, dropped=None) -> None:
    rows, columns = h.shape
    other = h if added is None else added
    target = h if total is None else total
    _rms_norm[(rows,)](
        h, other, weight, target, out, out.stride(0), *(eight or (h, h)), *_drawing(dropped, h), columns, eps,
        ADD=added is not None, EIGHT=eight is not None, DROP=dropped is not None, BLOCK=power_of_2(columns), num_warps=_warps(columns),
    )  # fmt: skip


@triton.jit
def _rms_norm_backward(
    grad, h, weight, residual, residual_stride, out, out_stride, eight, scales, columns, eps,
    RESIDUAL: tl.constexpr, RESULT: tl.constexpr, EIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    x = tl.load(h + row * columns + at, inside, 0).to(tl.float32)
    g = tl.load(grad + row * columns + at, inside, 0).to(tl.float32) * tl.load(weight + at, inside, 0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x) / columns + eps)
    unit = x * scale
    if RESULT:
        tl.store(grad + row * columns + at, unit * tl.load(weight + at, inside, 0).to(tl.float32), inside)
    result = scale * (g - unit * (tl.sum(g * unit) / columns))
    if RESIDUAL:
        result += tl.load(residual + row * residual_stride + at, inside, 0).to(tl.float32)
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
def _load_gate_up(gate_up, at, inside, columns, first, PAIRED: tl.constexpr, BLOCK: tl.constexpr):
    """Gate and up of columns `at`, which begin with `first`, of one row; read together where they lie in turn."""
    if PAIRED:
        both = 2 * first + tl.arange(0, 2 * BLOCK)
        gate, up = tl.split(tl.reshape(tl.load(gate_up + both, both < 2 * columns, 0), [BLOCK, 2]))
    else:
        gate, up = tl.load(gate_up + at, inside, 0), tl.load(gate_up + columns + at, inside, 0)
    return gate.to(tl.float32), up.to(tl.float32)


@triton.jit
def _store_gate_up(out, gate, up, at, inside, columns, first, PAIRED: tl.constexpr, BLOCK: tl.constexpr):
    """As `_load_gate_up` reads them."""
    if PAIRED:
        both = 2 * first + tl.arange(0, 2 * BLOCK)
        tl.store(out + both, tl.interleave(gate, up), both < 2 * columns)
    else:
        tl.store(out + at, gate, inside)
        tl.store(out + columns + at, up, inside)


@triton.jit(do_not_specialize=["seed", "limit"])
def _glu(
    gate_up, gate_up_row, out, out_stride, eight, scales, dropped, seed, limit, share, columns: tl.constexpr,
    GELU: tl.constexpr, EIGHT: tl.constexpr, DROP: tl.constexpr, PAIRED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([BLOCK], tl.float32)
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < columns
        gate, up = _load_gate_up(gate_up + row * gate_up_row, at, inside, columns, first, PAIRED, BLOCK)
        act, _ = _activate(gate, GELU)
        value = (act * up).to(out.dtype.element_ty)
        tl.store(out + row * out_stride + at, value, inside)
        largest = tl.maximum(largest, tl.abs(value.to(tl.float32)))
        if DROP:
            _store_dropped(value, dropped + row * columns, row, at, columns, seed, limit, share, inside)
    if EIGHT:
        scale = tl.maximum(tl.max(largest), 1e-12) / 448.0
        tl.store(scales + row, scale)
        _copy_in_eight(out + row * out_stride, eight + row * columns, scale, columns, BLOCK)


def glu(gate_up, out, gelu, eight, dropped=None, paired=False) -> None:
    rows, columns = out.shape
    _glu[(rows,)](
        gate_up, gate_up.stride(0), out, out.stride(0), *(eight or (out, out)), *_drawing(dropped, out), columns,
        GELU=gelu, EIGHT=eight is not None, DROP=dropped is not None, PAIRED=paired, BLOCK=2048, num_warps=8,
    )  # fmt: skip


@triton.jit
def _glu_backward(
    gate_up, gate_up_row, grad, out, out_stride, eight, scales, columns: tl.constexpr,
    GELU: tl.constexpr, RESULT: tl.constexpr, EIGHT: tl.constexpr, PAIRED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([BLOCK], tl.float32)
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < columns
        gate, up = _load_gate_up(gate_up + row * gate_up_row, at, inside, columns, first, PAIRED, BLOCK)
        act, slope = _activate(gate, GELU)
        g = tl.load(grad + row * columns + at, inside, 0).to(tl.float32)
        d_gate = (g * up * slope).to(out.dtype.element_ty)
        d_up = (g * act).to(out.dtype.element_ty)
        _store_gate_up(out + row * out_stride, d_gate, d_up, at, inside, columns, first, PAIRED, BLOCK)
        if RESULT:
            tl.store(grad + row * columns + at, act * up, inside)
        largest = tl.maximum(largest, tl.maximum(tl.abs(d_gate.to(tl.float32)), tl.abs(d_up.to(tl.float32))))
    if EIGHT:
        scale = tl.maximum(tl.max(largest), 1e-12) / 448.0
        tl.store(scales + row, scale)
        _copy_in_eight(out + row * out_stride, eight + row * 2 * columns, scale, 2 * columns, BLOCK)


def glu_backward(gate_up, grad, out, gelu, eight, result=True, paired=False) -> None:
    rows, columns = grad.shape
    _glu_backward[(rows,)](
        gate_up, gate_up.stride(0), grad, out, out.stride(0), *(eight or (out, out)), columns,
        GELU=gelu, RESULT=result, EIGHT=eight is not None, PAIRED=paired, BLOCK=4096, num_warps=16,
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
        _store_dropped(value, dropped + row * columns, row, at, columns, seed, limit, share, at < columns)


def copy(x, out, eight=None, dropped=None) -> None:
    rows, columns = x.shape
    _copy[(rows,)](
        x, x.stride(0), out, out.stride(0), *(eight or (x, x)), *_drawing(dropped, x), columns,
        EIGHT=eight is not None, DROP=dropped is not None, BLOCK=power_of_2(columns), num_warps=_warps(columns),
    )  # fmt: skip


@triton.jit(do_not_specialize=["seed", "limit"])
def _dropout(x, x_row, out, out_row, columns, seed, limit, share, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + row * x_row + at, at < columns, 0)
    _store_dropped(value, out + row * out_row, row, at, columns, seed, limit, share, at < columns)


def dropout(x, p, seed, out) -> None:
    rows, columns = x.shape
    _dropout[(rows, pieces(columns, 2048))](x, x.stride(0), out, out.stride(0), columns, *drawing(p, seed), BLOCK=2048, num_warps=8)


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
