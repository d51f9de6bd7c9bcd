"""Heads of queries, keys and values: how they lie beside each other, and how queries and keys are normalised and turned by position."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunestation.training.fast import ops
from tunestation.training.fast.attention import Gradients, side_by_side
from tunestation.training.fast.block import Block
from tunestation.training.fast.projection import Projection
from tunestation.training.fast.step import Step
from tunestation.training.fast.weights import Buffer


class Heads:
    """Of one layer; T tokens."""

    def __init__(self, block: Block):
        self.norms, self.counts, self.size = block.head_norms, block.heads, block.size

    def of(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values [T, heads, size] in rows [T, N], which may be strided."""
        return side_by_side(rows, self.counts, self.size)

    def turn(self, qkv: torch.Tensor, step: Step) -> tuple[torch.Tensor, ...]:
        """q, k, v as attention takes them, of all heads [T, all heads, size]: in place, unless heads are normalised."""
        parts = qkv.split(self.counts, 1)
        if not self.norms:
            turned = qkv[:, : -self.counts[2]]
            ops.rotate(turned, step.cos, step.sin, turned)
            return parts
        turned = qkv.new_empty(len(qkv), sum(self.counts[:2]), self.size).split(self.counts[:2], 1)
        for norm, part, out in zip(self.norms, parts, turned, strict=False):
            ops.norm_rotate(part, norm.weight, norm.eps, step.cos, step.sin, out)
        return *turned, parts[2]

    def turn_back(
        self, found: Gradients, before: torch.Tensor | None, step: Step, grads: torch.Tensor, qkv: Projection, wanted: bool
    ) -> tuple[ops.Eight | None, Buffer | None]:
        """The gradients of q, k, v as `turn` gave them, to rows `grads` [T, N + R] of `qkv`, where they may be already.

        `before` are the heads that were normalised. The same comes in 8 bits, if products read it so and it is `wanted`; and `qkv`'s
        backward pass has begun, if adapters' share came with the turning.
        """
        out, (turned, rest) = grads[:, : qkv.outputs], found
        there = turned[0].data_ptr() == out.data_ptr()
        if there and not self.norms and len(qkv.adapted) == len(self.counts):
            buffer = qkv.begin_backward(grads, wanted)
            ops.turn_back_in_place(grads, self.counts, qkv.filling.ranks, buffer.b, step.cos, step.sin, rest)
            return None, buffer
        ops.add_up(rest, turned[1:])
        if self.norms:
            self._through_norms(turned, before, step, out, there)
        else:
            eight = qkv.eight(out, qkv.outputs) if wanted else None
            ops.turn_back(turned, step.cos, step.sin, out, eight)
            return eight, None
        return None, None

    def _through_norms(self, turned: Sequence[torch.Tensor], before: torch.Tensor, step: Step, out: torch.Tensor, there: bool) -> None:
        parts = self.of(out)
        for norm, gradient, x, part in zip(self.norms, turned, before.split(self.counts, 1), parts, strict=False):
            ops.norm_rotate_backward(gradient, x, norm.weight, norm.eps, step.cos, step.sin, part)
        if not there:
            ops.copy(turned[2].flatten(1), parts[2].flatten(1))
