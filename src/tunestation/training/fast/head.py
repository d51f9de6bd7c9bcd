"""Final norm, head and loss on the labelled tokens alone, in pieces: no logits of a whole batch exist."""

from __future__ import annotations

import torch

from tunestation.training.fast import ops
from tunestation.training.fast.block import Norm
from tunestation.training.fast.layer import normalise


def summed_loss(
    h: torch.Tensor, norm: Norm, head: torch.Tensor, labelled: torch.Tensor, targets: torch.Tensor, rows: int
) -> torch.Tensor:
    """Sum of -log p(target) over labelled tokens, an fp32 scalar.

    h [T, K] is the last layer's result, head [vocabulary, K] its frozen weight, `labelled` [n] the places whose next token is `targets`
    [n]; logits are made for `rows` places at a time.
    """
    return _SummedLoss.apply(h, norm, head, labelled, targets, rows)


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, norm, head, labelled, targets, rows):
        """The gradient is made here too, while the logits are at hand; the backward pass only scales it."""
        picked = h.index_select(0, labelled)
        x, losses = torch.empty_like(picked), torch.empty(len(picked), dtype=torch.float32, device=h.device)
        normalise(norm, picked, x)
        for start in range(0, len(picked), rows):
            part = slice(start, start + rows)
            piece = x[part]
            logits = piece.new_empty(len(piece), len(head))
            ops.product(piece, head.t(), logits)
            ops.cross_entropy(logits, targets[part], losses[part])
            if ctx.needs_input_grad[0]:
                ops.product(logits, head, piece)
            del logits  # else two pieces exist while the next is made
        if ctx.needs_input_grad[0]:
            gradient = torch.empty_like(picked)
            ops.rms_norm_backward(x, picked, norm.weight, norm.eps, gradient, result=False)
            ctx.save_for_backward(gradient, labelled)
            ctx.tokens = len(h)
        return losses.sum()

    @staticmethod
    def backward(ctx, scale):
        gradient, labelled = ctx.saved_tensors
        full = gradient.new_zeros(ctx.tokens, gradient.shape[1])
        ops.scatter(gradient, labelled, scale, full)
        return full, None, None, None, None, None
