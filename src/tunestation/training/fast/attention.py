"""Causal attention over documents laid one behind the other, each seeing itself alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Documents:
    """Where documents lie in a micro-batch of T tokens. Counted on the host when the batch is made: no layer waits for the GPU."""

    cu_seqlens: torch.Tensor
    """int32 [documents + 1]: cumulative lengths."""
    longest: int
    """Tokens of the longest document."""
    tokens: int
    """T."""
    in_order: bool = False
    """Whether gradients are summed in one order on a GPU too."""

    @property
    def equal(self) -> bool:
        """Whether all documents have one length: then attention is a plain batch."""
        return self.longest * (len(self.cu_seqlens) - 1) == self.tokens


def side_by_side(rows: torch.Tensor, counts: Sequence[int], size: int) -> tuple[torch.Tensor, ...]:
    """Heads [T, count, size] for each of `counts` in rows [T, N], which may be strided."""
    return rows.unflatten(1, (-1, size)).split(list(counts), 1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, scale: float) -> torch.Tensor:
    """q [T, heads, size], k and v [T, key-value heads, size] -> [T, heads, size]."""
    if documents.equal and not (documents.in_order and q.is_cuda):
        q, k, v = (x.unflatten(0, (-1, documents.longest)).transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True).transpose(1, 2).flatten(0, 1)
    if not q.is_cuda:
        return _one_by_one(q, k, v, documents, scale)
    varlen, options = _varlen()
    cu, longest = documents.cu_seqlens, documents.longest
    return varlen(q, k, v, cu, cu, longest, longest, scale=scale, window_size=(-1, 0), **options)


@cache
def _varlen() -> tuple:
    """torch's FlashAttention for documents. Grouped heads want a flag from torch 2.12 on; before, they were taken without."""
    from torch.nn.attention.varlen import varlen_attn

    flag = "enable_gqa" in inspect.signature(varlen_attn).parameters
    return varlen_attn, {"enable_gqa": True} if flag else {}


Gradients = tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]
"""Those of q [T, heads, size], k and v [T, key-value heads, size]; and parts [P, T, key-value heads, size] of the latter two that are still
to be added to them, if there are any."""


class ByTorch:
    """Causal attention of q [T, heads, size], k and v [T, key-value heads, size], and what its gradient needs."""

    def __init__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, scale: float, out: torch.Tensor | None = None
    ) -> None:
        """`out` [T, heads * size], which may be strided, is where `result` is wanted; it need not be there."""
        self.of, self.documents = tuple(x.detach().requires_grad_() for x in (q, k, v)), documents
        with torch.enable_grad():
            self.with_graph = attend(*self.of, documents, scale)
        self.result = self.with_graph.detach()
        """[T, heads, size]."""

    def gradients(self, grad: torch.Tensor, outs: Sequence[torch.Tensor] | None = None) -> Gradients:
        """Those of q, k and v for that of `result`; `outs` is where they are wanted, as `out` above."""
        with _one_order() if self.documents.in_order and grad.is_cuda else nullcontext():
            return torch.autograd.grad(self.with_graph, self.of, grad), ()


@contextmanager
def _one_order() -> Iterator[None]:
    """torch's FlashAttention asks this switch of all operators how it shall sum."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what nobody has written
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill


def _one_by_one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, scale: float) -> torch.Tensor:
    lengths = documents.cu_seqlens.diff().tolist()
    found = []
    for parts in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):  # slices would each have a gradient as large as the whole
        q, k, v = (part.transpose(0, 1)[None] for part in parts)
        found.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(found)
