"""bfloat16 matrix products on CPUs without 16-bit arithmetic, put right. Importing this module does so there; elsewhere it does nothing.

Where oneDNN cannot multiply in bfloat16 (x86 without AVX-512), torch (2.13) falls back to plain loops, 5 to 40 times slower than float32.
Here operands are converted, multiplied in float32, and the result is rounded once, as oneDNN's kernels do. Replacing torch's own kernels
reaches every caller: the fast step, autograd, transformers, peft and bitsandbytes alike.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch

PIECE = 1 << 20
"""Weights converted at a time: 4 MB in float32, which stay in a core's cache, where a whole head of a large model would take gigabytes."""
FEW_ROWS = 4
"""Up to so many, torch's own kernel for products with transposed weights is as fast: it reads each weight once, in 16 bits."""
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu_backward"
"""Multiplies inside; its forward pass is as fast in bfloat16 as in float32."""


def lacks_products() -> bool:
    """Whether this CPU multiplies no bfloat16 matrices itself."""
    return not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def widen() -> torch.library.Library:
    """Let this process multiply bfloat16 matrices in float32 on its CPU from now on, as long as what is returned lives."""
    library = torch.library.Library("aten", "IMPL")
    names = [name + variant for name in ("addmm", "baddbmm") for variant in ("", ".out", "_")]
    made = {name: _product(name) for name in ("mm", "mm.out", "bmm", "bmm.out", *names)} | {ATTENTION: _attention_backward()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that kernels are replaced is the purpose
        for name, kernel in made.items():
            library.impl(name, kernel, "CPU", with_keyset=True, allow_override=True)
    return library


def _theirs(name: str) -> Callable:
    """torch's kernel, called without a look at what is registered today."""
    return torch.library.get_kernel(f"aten::{name}", "CPU").call_boxed


def _product(name: str) -> Callable:
    """Stands in for `name`: a @ b, or beta * added + alpha * a @ b, of matrices or of batches of them."""
    theirs, wide = _theirs(name), _theirs(name.removesuffix(".out").removesuffix("_"))

    def product(keys: object, *operands: torch.Tensor, **options: object) -> torch.Tensor:
        *added, a, b = operands
        out = operands[0] if name.endswith("_") else options.get("out")
        if not _is_slow(a, b, [*added, *([] if out is None else [out])], out):
            return theirs(keys, *operands, **options)
        options.pop("out", None)
        out = a.new_empty(*a.shape[:-1], b.shape[-1]) if out is None else out
        added, a = [x.expand(out.shape) for x in added], a.float()
        for part in _pieces(b):
            out[part].copy_(wide(keys, *(x[part].float() for x in added), a, b[part].float(), **options))
        return out

    return product


def _is_slow(a: torch.Tensor, b: torch.Tensor, others: list[torch.Tensor], out: torch.Tensor | None) -> bool:
    """Whether torch would walk through loops. What it refuses, or resizes `out` for, is left to it."""
    if any(x.dtype != torch.bfloat16 for x in (a, b, *others)):
        return False
    fits = a.dim() == b.dim() and a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-2]
    few = a.dim() == 2 and len(a) <= FEW_ROWS and b.stride(0) == 1
    return fits and not few and (out is None or out.shape == (*a.shape[:-1], b.shape[-1]))


def _pieces(b: torch.Tensor) -> list[tuple]:
    """Indices of consecutive columns of `b`, about PIECE values each."""
    width = max(64, PIECE // max(1, b.shape[:-1].numel()))
    return [(..., slice(start, start + width)) for start in range(0, b.shape[-1], width)]


def _attention_backward() -> Callable:
    theirs = _theirs(ATTENTION)

    def backward(keys: object, grad: torch.Tensor, *inputs: object, **options: object) -> tuple[torch.Tensor, ...]:
        if grad.dtype != torch.bfloat16:
            return theirs(keys, grad, *inputs, **options)
        found = theirs(keys, *map(_widened, (grad, *inputs)), **{name: _widened(value) for name, value in options.items()})
        return tuple(x.bfloat16() for x in found)

    return backward


def _widened(value: object) -> object:
    return value.float() if torch.is_tensor(value) and value.dtype == torch.bfloat16 else value


if lacks_products():
    widen()
