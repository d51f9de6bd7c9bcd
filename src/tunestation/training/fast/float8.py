"""A frozen base in 8-bit floats: each row of weights has a scale, each row of activations gets one on the fly; adapters stay in 16 bits."""

from __future__ import annotations

import torch
from torch import nn

from tunestation.training.fast import ops
from tunestation.training.fast.projection import Input, Projection
from tunestation.training.fast.weights import Buffer, Scratch


class Float8Linear(nn.Module):
    """A linear layer whose frozen weight is float8_e4m3fn, once by rows for y = x W' and once by columns for dx = dy W.

    The weights are plain attributes: DeepSpeed turns every floating-point parameter and buffer into bfloat16.
    """

    def __init__(self, linear: nn.Linear, device: torch.device):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        weight = linear.weight.data.to(device)
        self.by_rows = ops.quantise_rows(weight)
        self.by_columns = ops.quantise_rows(weight.t().contiguous())

    @property
    def weight(self) -> torch.Tensor:
        """The weight [out_features, in_features] that forward passes use, in bfloat16."""
        quantised, scales = self.by_rows
        return (quantised.float() * scales).bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Generation and layers that the fast step does not know: 16-bit arithmetic on the same weights."""
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)


def quantise_base(model: nn.Module, device: torch.device) -> None:
    """Turn every frozen linear layer of `model`, a peft model, but the head into 8-bit floats on `device`."""
    head = model.get_base_model().get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and not child.weight.requires_grad and child is not head:
                setattr(parent, name, Float8Linear(child, device))


class Float8Projection(Projection):
    """The same interface over 8-bit weights: the base product in 8 bits, the adapter's share added in 16."""

    BASE, EIGHT = False, True

    def __init__(self, modules: list[nn.Module], scratch: Scratch):
        super().__init__(modules, scratch)
        bases = [member.base for member in self.members]
        self.by_rows = _join([base.by_rows for base in bases])
        by_columns = [base.by_columns for base in bases]
        # dx sums over the outputs of all members, which have column scales of their own: one scale a column serves all of them
        self.by_columns = by_columns[0] if len(bases) == 1 else ops.quantise_rows(
            torch.cat([(quantised.float() * scales).bfloat16() for quantised, scales in by_columns], 1)
        )
        for base, (outputs, _) in zip(bases, self.filling.parts, strict=True):
            base.by_rows = tuple(part[outputs] for part in self.by_rows)
            base.by_columns = None

    def eight(self, rows: torch.Tensor, columns: int) -> ops.Eight:
        return ops.empty_eight(len(rows), columns, rows.device)

    def _multiply(self, read: Input, buffer: Buffer, roomy: bool, added: torch.Tensor | None) -> torch.Tensor:
        y, tail = multiply(read.eight, self.by_rows, self._bias(), read.rows.dtype), read.rows[:, self.columns :]
        at_once = added is not None and all(member.lora for member in self.members)
        for member, (part, ranks) in zip(self.members, self.filling.parts, strict=True):
            if member.lora:
                ops.add_low_rank(y[:, part], tail[:, ranks], buffer.b[part, ranks], added[:, part] if at_once else None)
        return y if added is None or at_once else y.add_(added)

    def widened(self, y: torch.Tensor) -> torch.Tensor:
        return self.gradient(y)  # the 8-bit product has written y without room

    def _multiply_back(self, grads: torch.Tensor, buffer: Buffer, seed: int | None, eight: ops.Eight | None) -> torch.Tensor:
        n = self.outputs
        dx = multiply(eight or ops.quantise_rows(grads[:, :n]), self.by_columns, None, grads.dtype)
        if self.rank:
            p = self.p if self.drops(seed) else 0.0
            ops.add_low_rank(dx, grads[:, n:], buffer.a_turned, p=p, seed=seed or 0)
        return dx

    def keep_weights(self, like: torch.Tensor | None) -> None:
        """8-bit weights are always at hand."""


def multiply(x: ops.Eight, weight: ops.Eight, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """x [T, K] times the transpose of weight [N, K], both in 8 bits with a scale for each row; result [T, N] in `dtype`."""
    (values, scales), (weights, weight_scales) = x, weight
    if values.is_cuda:
        return torch._scaled_mm(values, weights.t(), scales, weight_scales.t(), bias, out_dtype=dtype, use_fast_accum=True)
    y = (values.float() * scales) @ (weights.float() * weight_scales).t()
    return (y if bias is None else y + bias.float()).to(dtype)


def _join(parts: list[ops.Eight]) -> ops.Eight:
    values, scales = zip(*parts, strict=True)
    # float8 has no concatenation on every device; its bytes have
    return torch.cat([value.view(torch.uint8) for value in values]).view(values[0].dtype), torch.cat(scales)
