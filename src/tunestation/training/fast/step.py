"""What the layers of a micro-batch share, and what one hands to another."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tunestation.training.fast import ops
from tunestation.training.fast.attention import Documents
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
    last: int
    """Index of the last layer."""
    given: Given | None = None
    """What the layer behind has handed on in this backward pass."""
    pending: torch.Tensor | None = None
    """What is still to be added to the result [T, K] of the layer before: the norm that reads it next adds without a pass of its own."""

    def left_to_next(self, index: int, added: torch.Tensor) -> torch.Tensor | None:
        """`added`, if the layer behind `index` can add it: there is one, and its input does not leave for host memory before."""
        return None if index == self.last or index + 1 in self.inputs.away else added

    def take_pending(self) -> torch.Tensor | None:
        """`pending`, which whoever takes it adds."""
        pending, self.pending = self.pending, None
        return pending

    def bring(self, index: int, ahead: int) -> None:
        """See to it that layer `index` has its weights; the next to run is the one after it, or (`ahead` -1) before it."""
        if self.weights is not None:
            self.weights.take(index, ahead)
