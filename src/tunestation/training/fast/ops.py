"""What the fast step computes between its products. Each function is written out in torch, for CPUs and as the definition; on a GPU one
Triton kernel does the same. Arithmetic is in fp32, whatever the dtype of the arguments; results are rounded once.

Shapes: T tokens of a micro-batch, K columns. Rows of `out` and `gate_up`, and of what is copied, turned or quantised, may be strided, their
neighbours lying side by side; everything else is contiguous. Where `eight` or `drop` is given, `out` is written there too, as
`quantise_rows` or `dropping.dropout` would: it saves reading it once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from math import pi
from types import ModuleType

import torch
from torch.nn import functional

from tunestation.training.fast import products, quack_loss
from tunestation.training.fast.attention import side_by_side
from tunestation.training.fast.dropping import Dropped, dropout, dropped

Eight = tuple[torch.Tensor, torch.Tensor]
"""float8_e4m3fn values [T, K] and fp32 scales [T, 1]; their product is what they stand for."""
GELU, CUBIC = 2 * (2 / pi) ** 0.5, 0.044715
"""Of gelu by tanh (arXiv 1606.08415)."""


@cache
def _on_gpu(name: str) -> ModuleType:
    """A module of Triton kernels, which only GPUs have a use for."""
    return import_module(f"tunestation.training.fast.{name}")


def rms_norm(
    h: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    eight: Eight | None = None,
    drop: Dropped | None = None,
) -> None:
    """out = weight * h / rms(h) of each row of h [T, K] (arXiv 1910.07467)."""
    if h.is_cuda:
        return _on_gpu("kernels").rms_norm(h, weight, eps, out, eight, drop)
    x = h.float()
    out.copy_(x * torch.rsqrt(x.square().mean(1, keepdim=True) + eps) * weight.float())
    _fill(eight, out, drop)


def rms_norm_backward(
    grad: torch.Tensor,
    h: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    residual: torch.Tensor | None = None,
    eight: Eight | None = None,
    result: bool = True,
) -> None:
    """out = gradient of rms_norm's input, plus `residual`, the gradient that reached the same input past the norm. The weight is frozen.

    `grad`, of the norm's result, is overwritten with that result itself, if `result` is wanted.
    """
    if h.is_cuda:
        return _on_gpu("kernels").rms_norm_backward(grad, h, weight, eps, out, residual, eight, result)
    x, g = h.float(), grad.float() * weight.float()
    scale = torch.rsqrt(x.square().mean(1, keepdim=True) + eps)
    unit = x * scale
    found = scale * (g - unit * (g * unit).mean(1, keepdim=True))
    out.copy_(found if residual is None else found + residual.float())
    _fill(eight, out)
    if result:
        grad.copy_(unit * weight.float())


def glu(gate_up: torch.Tensor, out: torch.Tensor, gelu: bool, eight: Eight | None = None, drop: Dropped | None = None) -> None:
    """out [T, K] = act(gate) * up (arXiv 2002.05202), act silu or, with `gelu`, gelu by tanh; gate_up [T, 2K] holds gate, then up."""
    if gate_up.is_cuda:
        return _on_gpu("kernels").glu(gate_up, out, gelu, eight, drop)
    gate, up = gate_up.float().chunk(2, 1)
    out.copy_((functional.gelu(gate, approximate="tanh") if gelu else functional.silu(gate)) * up)
    _fill(eight, out, drop)


def glu_backward(
    gate_up: torch.Tensor,
    grad: torch.Tensor,
    out: torch.Tensor,
    gelu: bool,
    eight: Eight | None = None,
    result: bool = True,
) -> None:
    """out [T, 2K] = gradients of gate and up, and may be `gate_up`.

    `grad` [T, K], of glu's result, is overwritten with that result itself, if `result` is wanted.
    """
    if gate_up.is_cuda:
        return _on_gpu("kernels").glu_backward(gate_up, grad, out, gelu, eight, result)
    gate, up = gate_up.float().chunk(2, 1)
    g, (act, slope) = grad.float(), _activate(gate, gelu)
    found = act * up if result else None
    out.copy_(torch.cat([g * up * slope, g * act], 1))
    if result:
        grad.copy_(found)
    _fill(eight, out)


def _activate(gate: torch.Tensor, gelu: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The activation and its slope.

    Both are x sigmoid(z): silu with z = x, gelu by tanh with z = 2 sqrt(2 / pi) (x + 0.044715 x^3).
    """
    z, dz = (GELU * (gate + CUBIC * gate**3), GELU * (1 + 3 * CUBIC * gate**2)) if gelu else (gate, 1.0)
    sigmoid = torch.sigmoid(z)
    act = gate * sigmoid
    return act, sigmoid + act * (1 - sigmoid) * dz


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, sign: int = 1) -> None:
    """Rotary embedding (arXiv 2104.09864) in the half-split layout; x, out [T, heads, size]; cos, sin [T, R // 2], R the columns that turn.

    `sign` -1 turns back: the gradient. `out` may be `x`. Columns behind R stay as they are.
    """
    turning = 2 * cos.shape[1]
    if turning < x.shape[2] and out.data_ptr() != x.data_ptr():
        out[..., turning:].copy_(x[..., turning:])
    x, out = x[..., :turning], out[..., :turning]
    if x.is_cuda:
        return _on_gpu("rotary_kernels").rotate(x, cos, sin, out, sign)
    c, s = cos.float()[:, None], sin.float()[:, None] * sign
    a, b = x.float().chunk(2, 2)
    out.copy_(torch.cat([a * c - b * s, b * c + a * s], 2))


def norm_rotate(x: torch.Tensor, weight: torch.Tensor, eps: float, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
    """out = rotate(rms_norm(x) of each head); x, out [T, heads, size], weight [size], cos, sin [T, size // 2]."""
    if x.is_cuda:
        return _on_gpu("rotary_kernels").norm_rotate(x, weight, eps, cos, sin, out)
    x = x.float()
    rotate(x * torch.rsqrt(x.square().mean(2, keepdim=True) + eps) * weight.float(), cos, sin, out)


def norm_rotate_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor
) -> None:
    """out [T, heads, size] = gradient of norm_rotate's x; `grad` of its result. The weight is frozen."""
    if x.is_cuda:
        return _on_gpu("rotary_kernels").norm_rotate_backward(grad, x, weight, eps, cos, sin, out)
    x, turned = x.float(), torch.empty(x.shape, dtype=torch.float32, device=x.device)
    rotate(grad, cos, sin, turned, sign=-1)
    g, scale = turned * weight.float(), torch.rsqrt(x.square().mean(2, keepdim=True) + eps)
    unit = x * scale
    out.copy_(scale * (g - unit * (g * unit).mean(2, keepdim=True)))


def turn_back(
    grads: tuple[torch.Tensor, ...], cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, eight: Eight | None = None
) -> None:
    """out [T, N] = the gradients of queries, keys and values [T, heads, size], side by side, the first two turned back by `rotate`.

    If they lie in `out` already, and so without `eight`, queries and keys alone are read and written.
    """
    if grads[0].data_ptr() == out.data_ptr():
        both = out[:, : -grads[2][0].numel()].unflatten(1, (-1, grads[2].shape[2]))
        return rotate(both, cos, sin, both, sign=-1)
    if out.is_cuda:
        return _on_gpu("rotary_kernels").turn_back(grads, cos, sin, out, eight)
    d_q, d_k, d_v = grads
    parts = out.unflatten(1, (-1, d_v.shape[2])).split([grad.shape[1] for grad in grads], 1)
    rotate(d_q, cos, sin, parts[0], sign=-1)
    rotate(d_k, cos, sin, parts[1], sign=-1)
    parts[2].copy_(d_v)
    _fill(eight, out)


def turn_back_in_place(
    rows: torch.Tensor,
    heads: list[int],
    ranks: list[int],
    b: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rest: Sequence[torch.Tensor] = (),
) -> None:
    """rows [T, N + R]: the first N columns, gradients of `heads` of queries, keys and values, turned back but for values; the last R
    columns = those @ b.

    b [N, R] has for queries, keys and values `ranks` columns each, and zeros in those of the others. First keys and values `add_up` `rest`.
    """
    outputs = b.shape[0]
    size = outputs // sum(heads)
    if rows.is_cuda and _on_gpu("rotary_kernels").fits(size, ranks, cos):
        return _on_gpu("rotary_kernels").turn_back_in_place(rows, outputs, heads, ranks, b, cos, sin, rest)
    parts = side_by_side(rows[:, :outputs], heads, size)
    add_up(rest, parts[1:])
    turn_back(parts, cos, sin, rows[:, :outputs])
    product(rows[:, :outputs], b, rows[:, outputs:])


def copy(x: torch.Tensor, out: torch.Tensor, eight: Eight | None = None, drop: Dropped | None = None) -> None:
    """out [T, K] = x; on a GPU torch copies to strided rows at half the speed."""
    if x.is_cuda:
        return _on_gpu("kernels").copy(x, out, eight, drop)
    out.copy_(x)
    _fill(eight, out, drop)


def add_up(rest: Sequence[torch.Tensor], outs: Sequence[torch.Tensor]) -> None:
    """Each of `outs` [T, heads, size] += its parts [P, T, heads, size] in `rest`, which may be empty; the sum is rounded once."""
    for parts, out in zip(rest, outs, strict=bool(rest)):
        if out.is_cuda:
            _on_gpu("kernels").add_up(parts, out)
        else:
            out.copy_(parts.float().sum(0) + out.float())


def scatter(x: torch.Tensor, places: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> None:
    """Rows `places` [n] int64 of out [T, K] = x [n, K] times the one fp32 number in `scale`; on a GPU in one pass."""
    if x.is_cuda:
        return _on_gpu("kernels").scatter(x, places, scale, out)
    out.index_copy_(0, places, (x * scale.view(1)).to(x.dtype))


def product(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, added: torch.Tensor | None = None) -> None:
    """out [T, N] = x [T, K] @ weight [K, N], plus `added` [T, N], which a GPU adds before it rounds; any strides."""
    if x.is_cuda:
        return products.product(x, weight, out, added)
    torch.mm(x, weight, out=out)
    if added is not None:
        out.add_(added)


def outer(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, scale: float = 1.0) -> None:
    """out [M, N] = scale * left [T, M]' @ right [T, N]; `out` may be fp32 where the others are not, and a GPU then rounds to that alone."""
    if left.is_cuda:
        torch.addmm(out, left.t(), right, out_dtype=out.dtype, beta=0, alpha=scale, out=out)
    else:
        out.copy_(torch.mm(left.t(), right).mul_(scale))


def add_low_rank(
    y: torch.Tensor, tail: torch.Tensor, b: torch.Tensor, added: torch.Tensor | None = None, p: float = 0.0, seed: int = 0
) -> None:
    """y [T, N] += tail [T, r] @ b [N, r]', of which `dropping.dropout` keeps a share 1 - p; plus `added`. All of one dtype; b may lie
    either way."""
    if y.is_cuda:
        return _on_gpu("low_rank_kernels").add_low_rank(y, tail, b, added, p, seed)
    if p:
        y.copy_(dropped(tail @ b.t(), p, seed) + y.float())
    else:
        y.addmm_(tail, b.t())
    if added is not None:
        y.add_(added)


def dropped_low_rank(tail: torch.Tensor, b: torch.Tensor, out: torch.Tensor, p: float, seed: int) -> None:
    """out [T, N] = `dropping.dropout` of tail [T, r] @ b [N, r]'; all of one dtype, b may lie either way."""
    if out.is_cuda:
        return _on_gpu("low_rank_kernels").dropped_low_rank(tail, b, out, p, seed)
    dropout(tail @ b.t(), p, seed, out)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor) -> None:
    """losses [n] fp32 = -log softmax(logits)[target]; `logits` [n, vocabulary] is overwritten with the gradient of their sum."""
    if logits.is_cuda:
        once = quack_loss.known(logits.device, logits.dtype, logits.shape[1])
        return (quack_loss if once else _on_gpu("product_kernels")).cross_entropy(logits, targets, losses)
    log_p = torch.log_softmax(logits.float(), 1)
    losses.copy_(-log_p.gather(1, targets[:, None])[:, 0])
    grad = log_p.exp_()
    grad[torch.arange(len(targets)), targets] -= 1
    logits.copy_(grad)


def empty_eight(rows: int, columns: int, device: torch.device) -> Eight:
    """Room for [rows, columns] in 8 bits, unwritten."""
    values = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=device)
    return values, torch.empty(rows, 1, dtype=torch.float32, device=device)


def quantise_rows(x: torch.Tensor) -> Eight:
    """x [T, K] in 8 bits: the largest value of a row becomes 448, the largest of the format."""
    eight = empty_eight(*x.shape, x.device)
    if x.is_cuda:
        _on_gpu("kernels").quantise_rows(x, *eight)
    else:
        _fill(eight, x)
    return eight


def _fill(eight: Eight | None, x: torch.Tensor, drop: Dropped | None = None) -> None:
    if eight is not None:
        values, scales = eight
        scales.copy_(x.float().abs().amax(1, keepdim=True).clamp_(min=1e-12) / 448)
        values.copy_(x.float() / scales)
    if drop is not None:
        drop.draw(x)
