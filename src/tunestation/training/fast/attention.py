"""Causal attention over documents laid one behind the other, each seeing itself alone."""

from __future__ import annotations

import inspect
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

    @property
    def equal(self) -> bool:
        """Whether all documents have one length: then attention is a plain batch."""
        return self.longest * (len(self.cu_seqlens) - 1) == self.tokens


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, scale: float) -> torch.Tensor:
    """q [T, heads, size], k and v [T, key-value heads, size] -> [T, heads, size]."""
    if documents.equal:
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


def _one_by_one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, scale: float) -> torch.Tensor:
    lengths = documents.cu_seqlens.diff().tolist()
    found = []
    for parts in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):  # slices would each have a gradient as large as the whole
        q, k, v = (part.transpose(0, 1)[None] for part in parts)
        found.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(found)
