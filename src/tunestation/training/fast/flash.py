"""Attention by FlashAttention 4 (CuTe DSL, BSD-3), which torch knows as one of its ways too, on Hopper GPUs.

It is called by its own two functions, as torch's `nn.attention._fa4` calls them: they write to where the next product reads, and gradients
to where the one before it does. On an H200 a layer's attention and its gradient take 7 to 9 % less time than by cuDNN, 35 % less than by
torch's FlashAttention for packs of short documents, and 40 % less where gradients are summed in one order; the host is busy half as long.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache

import torch

from tunestation.training.fast import hopper, ops
from tunestation.training.fast.attention import ByTorch, Documents, side_by_side

LARGEST = 128
"""Columns of a head up to which it has been measured."""
APART, MANY = 4, 8192
"""Queries for each key, and tokens from which on, their gradients are made apart: what several queries give a key is else added up in
fp32 in memory. For fewer tokens the host would not be done in time."""
TRIED = (((200, 312), False), ((200, 312), True), ((256, 256), False), ((5,) * 300 + (7,), False))
"""Lengths of documents that are tried at start, and whether in one order: each is a kernel of its own, as equal ones and many short are."""


@cache
def known(device: torch.device, dtype: torch.dtype, heads: tuple[int, int], size: int) -> bool:
    """Whether it is here, and right for so many `heads` of queries and of keys with `size` columns each."""
    if size > LARGEST or size % 8 or not hopper.has(device, dtype, "flash-attn-4"):
        return False
    return hopper.agrees(device, "FlashAttention 4's kernels", "torch's attention is taken", lambda on: _agree(on, heads, size))


class Flash:
    """As `ByTorch`."""

    def __init__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, scale: float, out: torch.Tensor | None = None
    ) -> None:
        self.of, self.documents, self.scale = (q, k, v), documents, scale
        self.result = q.new_empty(q.shape) if out is None else out.unflatten(1, q.shape[1:])
        laid = [self._laid(x) for x in (q, k, v)]
        options = {"softmax_scale": scale, "causal": True, "return_lse": True, "out": self._laid(self.result)}
        self.sums = _interface()._flash_attn_fwd(*laid, **options, **self._lengths())[1]

    def gradients(self, grad: torch.Tensor, outs: Sequence[torch.Tensor] | None = None) -> Sequence[torch.Tensor]:
        """Those of q, k and v, in `outs` if they are given, which may be strided, for that of `result`."""
        if outs is None:
            outs = [x.new_empty(x.shape) for x in self.of]
        q, k, _ = self.of
        group = q.shape[1] // k.shape[1]
        if 1 < group <= APART and len(q) >= MANY:
            self._apart(grad, outs, group)
        else:
            self._backward((*self.of, self.result, grad), self.sums, outs)
        return outs

    def _apart(self, grad: torch.Tensor, outs: Sequence[torch.Tensor], group: int) -> None:
        """One of each `group` of queries at a time."""
        (q, k, v), (d_q, *d_keys) = self.of, outs
        rest = [k.new_empty(group - 1, *k.shape) for _ in d_keys]
        for first in range(group):
            each = slice(first, None, group)
            places = d_q[:, each], *([part[first - 1] for part in rest] if first else d_keys)
            self._backward((q[:, each], k, v, self.result[:, each], grad[:, each]), self.sums[..., each, :], places)
        for parts, out in zip(rest, d_keys, strict=True):
            ops.add_up(parts.flatten(2), out.flatten(1))

    def _backward(self, of: Sequence[torch.Tensor], sums: torch.Tensor, outs: Sequence[torch.Tensor]) -> None:
        places = dict(zip(("dq", "dk", "dv"), map(self._laid, outs), strict=True))
        options = {"softmax_scale": self.scale, "causal": True, "deterministic": self.documents.in_order}
        _interface()._flash_attn_bwd(*map(self._laid, of), sums, **options, **places, **self._lengths())

    def _laid(self, x: torch.Tensor) -> torch.Tensor:
        """Documents of one length as a batch, which takes 4 % less time; others one behind the other."""
        return x.unflatten(0, (-1, self.documents.longest)) if self.documents.equal else x

    def _lengths(self) -> dict:
        """Of documents that are not a batch."""
        if self.documents.equal:
            return {}
        cu, longest = self.documents.cu_seqlens, self.documents.longest
        return {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": longest, "max_seqlen_k": longest}


@cache
def _interface():
    # said of an argument that its kernels do not use, whenever one is compiled
    warnings.filterwarnings("ignore", "Argument aux_data .* cannot be converted", UserWarning)
    from flash_attn.cute import interface

    return interface


def _agree(device: torch.device, heads: tuple[int, int], size: int) -> bool:
    """Whether attention over a few short documents, and its gradients, are torch's on a CPU in fp32."""
    generator = torch.Generator().manual_seed(0)
    return all(_agree_on(device, lengths, in_order, heads, size, generator) for lengths, in_order in TRIED)


def _agree_on(
    device: torch.device, lengths: tuple, in_order: bool, heads: tuple[int, int], size: int, generator: torch.Generator
) -> bool:
    tokens, found, (many, few) = sum(lengths), [], heads
    given = [torch.randn(tokens, count, size, generator=generator).bfloat16() for count in (many, few, few, many)]
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    for way, where, dtype in ((ByTorch, torch.device("cpu"), torch.float32), (Flash, device, torch.bfloat16)):
        *of, grad = (x.to(where, dtype) for x in given)
        out, grads = (torch.empty(tokens, count * size + 8, dtype=dtype, device=where)[:, :-8] for count in (many, many + 2 * few))
        places = side_by_side(grads, (many, few, few), size)
        made = way(*of, Documents(cu.to(where), max(lengths), tokens, in_order), size**-0.5, out)
        found.append([made.result, *made.gradients(grad, places)])
    return hopper.near(*found)
