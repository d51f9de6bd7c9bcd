"""What a decoder layer holds between its forward and its backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch

from tunestation.training.fast.attention import ByTorch
from tunestation.training.fast.flash import Flash


class Keep(IntEnum):
    """What a layer holds between forward and backward pass, from fastest to smallest."""

    MORE = -1
    """As ALL, and what adapters read too: nothing is made again but the dropout of attention's result."""
    ALL = 0
    """Everything but what elementwise work makes again: inputs of norms, queries, keys, values, attention, gate and up."""
    ATTENTION = 1
    """All but gate and up: their product is computed again."""
    INPUT = 2
    """The layer's input alone; all but the last product is computed again."""


@dataclass
class Kept:
    """Activations of one layer; a tail is an input's adapter share xA' [T, R]."""

    attention: ByTorch | Flash | None
    tail_qkv: torch.Tensor | None
    tail_o: torch.Tensor | None
    middle: torch.Tensor
    """Residual stream between attention and MLP [T, K]."""
    before_turning: torch.Tensor | None
    """[T, all heads, size], where queries and keys are normalised."""
    gate_up: torch.Tensor | None = None
    tail_gate_up: torch.Tensor | None = None
    tail_down: torch.Tensor | None = None
    x_qkv: torch.Tensor | None = None
    """What the projection's adapters read [T, K], as `x_gate_up` and `x_down`; only where nothing is made again."""
    x_gate_up: torch.Tensor | None = None
    x_down: torch.Tensor | None = None
