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
from tunestation.training.fast.attention import ByTorch, Documents, Gradients, side_by_side

LARGEST = 128
"""Columns of a head up to which it has been measured."""
SEVERAL = 4
"""Most queries that share a key for which `apart` has been measured."""
MANY = 8192
"""Tokens from which on queries go `apart`: with fewer the GPU would wait for the host."""
TRIED = ((200, 312), (256, 256), (5,) * 300 + (7,))
"""Lengths of documents that are tried at start: each is a kernel of its own."""


@cache
def known(
    device: torch.device, dtype: torch.dtype, heads: tuple[int, int], size: int, in_order: bool = False, many: bool = True
) -> bool:
    """Whether it is here, and right for so many `heads` of queries and of keys with `size` columns each, `in_order` or not; also where
    queries go `apart`, if there are so `many` tokens at once."""
    if size > LARGEST or size % 8 or not hopper.has(device, dtype, "flash-attn-4"):
        return False
    what, otherwise = "FlashAttention 4's kernels", "torch's attention is taken"
    return hopper.agrees(device, what, otherwise, lambda on: _agree(on, heads, size, in_order, many))


def apart(q: torch.Tensor, k: torch.Tensor, documents: Documents) -> bool:
    """Whether queries that share a key go backward one after the other. Together they add up what they give it in memory, in fp32, which
    takes longer where they are two, and in packs. Microseconds of an H200, together and one after the other, their parts added in a pass
    of its own: 1.8B 843 and 819, 7B in packs 950 and 900, else 1,542 and 1,613.
    """
    group = q.shape[1] // k.shape[1]
    return len(q) >= MANY and (group == 2 or (2 < group <= SEVERAL and not documents.equal))


class Flash:
    """As `ByTorch`."""

    def __init__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, scale: float, out: torch.Tensor | None = None
    ) -> None:
        self.of, self.documents, self.scale = (q, k, v), documents, scale
        self.apart = apart(q, k, documents)
        self.result = q.new_empty(q.shape) if out is None else out.unflatten(1, q.shape[1:])
        laid = [self._laid(x) for x in (q, k, v)]
        options = {"softmax_scale": scale, "causal": True, "return_lse": True, "out": self._laid(self.result)}
        self.sums = _interface()._flash_attn_fwd(*laid, **options, **self._lengths())[1]

    def gradients(self, grad: torch.Tensor, outs: Sequence[torch.Tensor] | None = None) -> Gradients:
        """Those of q, k and v, in `outs` if they are given, which may be strided, for that of `result`."""
        if outs is None:
            outs = [x.new_empty(x.shape) for x in self.of]
        if self.apart:
            return outs, self._query_by_query(grad, outs)
        self._backward((*self.of, self.result, grad), self.sums, outs)
        return outs, ()

    def _query_by_query(self, grad: torch.Tensor, outs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The first of each key's queries gives its gradients to `outs`; returned is what the others give. All are rounded before they are
        added."""
        (q, k, v), (d_q, *d_keys) = self.of, outs
        group = q.shape[1] // k.shape[1]
        rest = [k.new_empty(group - 1, *k.shape) for _ in d_keys]
        for first in range(group):
            each = slice(first, None, group)
            places = d_q[:, each], *([part[first - 1] for part in rest] if first else d_keys)
            self._backward((q[:, each], k, v, self.result[:, each], grad[:, each]), self.sums[..., each, :], places)
        return rest

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


def _agree(device: torch.device, heads: tuple[int, int], size: int, in_order: bool, many: bool) -> bool:
    """Whether attention over a few short documents, and its gradients, are torch's on a CPU in fp32."""
    generator, ways = torch.Generator().manual_seed(0), (False, True) if many and 1 < heads[0] // heads[1] <= SEVERAL else (False,)
    return all(_agree_on(device, lengths, in_order, heads, size, one_by_one, generator) for one_by_one in ways for lengths in TRIED)


def _agree_on(
    device: torch.device, lengths: tuple, in_order: bool, heads: tuple[int, int], size: int, one_by_one: bool, generator: torch.Generator
) -> bool:
    tokens, found, (many, few) = sum(lengths), [], heads
    given = [torch.randn(tokens, count, size, generator=generator).bfloat16() for count in (many, few, few, many)]
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    for way, where, dtype in ((ByTorch, torch.device("cpu"), torch.float32), (Flash, device, torch.bfloat16)):
        *of, grad = (x.to(where, dtype) for x in given)
        out, grads = (torch.empty(tokens, count * size + 8, dtype=dtype, device=where)[:, :-8] for count in (many, many + 2 * few))
        made = way(*of, Documents(cu.to(where), max(lengths), tokens, in_order), size**-0.5, out)
        made.apart = one_by_one
        gradients, rest = made.gradients(grad, side_by_side(grads, (many, few, few), size))
        ops.add_up(rest, gradients[1:])
        found.append([made.result, *gradients])
    return hopper.near(*found)
