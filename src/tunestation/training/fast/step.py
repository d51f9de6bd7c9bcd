"""What the layers of a micro-batch share, and what one hands to another."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tunestation.training.fast import ops
from tunestation.training.fast.attention import Documents
from tunestation.training.fast.beside import Beside
from tunestation.training.fast.host import Inputs, Weights


@dataclass(frozen=True)
class Given:
    """The gradient of a layer's input, as it is handed to the layer before."""

    rows: torch.Tensor
    """[T, K + R], with room for what that layer's last projection adds."""
    eight: ops.Eight | None
    """The same in 8 bits, for a projection that asks for it."""


@dataclass
class Step:
    """What all layers of a micro-batch share."""

    documents: Documents
    cos: torch.Tensor
    """[T, R // 2], as `sin`; R columns of a head turn."""
    sin: torch.Tensor
    seed: int | None
    """Of this micro-batch's dropout; None drops nothing."""
    inputs: Inputs
    """Where layers' inputs are between forward and backward pass."""
    weights: Weights | None
    """Those in host memory, which are brought before a layer runs."""
    beside: Beside
    """Where adapters' gradients are made, if memory is free."""
    given: Given | None = None
    """What the layer behind has handed on in this backward pass."""

    def bring(self, index: int, ahead: int) -> None:
        """See to it that layer `index` has its weights; the next to run is the one after it, or (`ahead` -1) before it."""
        if self.weights is not None:
            self.weights.take(index, ahead)
