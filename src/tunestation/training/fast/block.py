"""What a decoder layer is made of: one description over the modules of all families that the fast step knows.

norm, queries, keys and values (packed or not, biased or not, their heads normalised or not), half-split rotary over all or the first
columns of a head, causal attention, output, norm, gated MLP (packed or not). What sets a family apart is read off its modules and its
configuration; `families.NORM_OFFSETS` holds the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from tunestation.training.families import NORM_OFFSETS

GELU = {"silu": False, "gelu_pytorch_tanh": True}
"""Activations of the gate -> whether it is gelu by tanh."""


@dataclass(frozen=True)
class Norm:
    """RMS norm (arXiv 1910.07467) over the last dimension."""

    module: nn.Module
    offset: int

    @property
    def weight(self) -> torch.Tensor:
        """What the normalised values are multiplied with."""
        weight = self.module.weight.detach()
        return weight.float() + self.offset if self.offset else weight

    @property
    def eps(self) -> float:
        """Added to the mean square."""
        return self.module.eps if hasattr(self.module, "eps") else self.module.variance_epsilon


@dataclass(frozen=True)
class Block:
    """The modules of one decoder layer by what they do; several on one input are one product."""

    qkv: list[nn.Module]
    o: list[nn.Module]
    gate_up: list[nn.Module]
    down: list[nn.Module]
    norm1: Norm
    norm2: Norm
    head_norms: tuple[Norm, Norm] | None
    """Of each query and key, before they turn."""
    heads: list[int]
    """Of queries, keys, values."""
    size: int
    """Columns of a head."""
    scale: float
    """Of scores."""
    gelu: bool

    @property
    def pairs(self) -> bool:
        """Whether gate and up are two layers that can be one with their outputs in turn, and silu is what follows."""
        plain = all(getattr(each, "base_layer", each).bias is None for each in self.gate_up)
        return plain and len(self.gate_up) == 2 and not self.gelu

    @classmethod
    def of(cls, layer: nn.Module, config: object) -> Block:
        """`layer` of a model whose `config` has no `unknown`."""
        attention, mlp = layer.self_attn, layer.mlp
        packed = hasattr(attention, "qkv_proj")
        offset = NORM_OFFSETS[config.model_type]
        norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
        return cls(
            [attention.qkv_proj] if packed else [attention.q_proj, attention.k_proj, attention.v_proj],
            [attention.o_proj],
            [mlp.gate_up_proj] if packed else [mlp.gate_proj, mlp.up_proj],
            [mlp.down_proj],
            Norm(layer.input_layernorm, offset),
            Norm(layer.post_attention_layernorm, offset),
            norms and tuple(Norm(norm, offset) for norm in norms),
            [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads],
            attention.head_dim,
            attention.scaling,
            GELU[config.hidden_act],
        )


def unknown(config: object, longest: int) -> str | None:
    """What in a model of `config` is not described here, with documents of up to `longest` tokens; None if nothing."""
    if config.model_type not in NORM_OFFSETS:
        return f"it does not know the family '{config.model_type}'"
    if config.hidden_act not in GELU:
        return f"it knows silu and gelu by tanh, not '{config.hidden_act}'"
    if getattr(config, "attention_dropout", 0) or getattr(config, "resid_pdrop", 0) or getattr(config, "embd_pdrop", 0):
        return "it knows no dropout but that of adapters"
    if getattr(config, "use_bidirectional_attention", None):
        return "it knows causal attention only"
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window and window < longest:
        return f"documents of up to {longest:,} tokens go beyond its sliding window of {window:,}"
    return None
