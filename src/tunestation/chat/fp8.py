"""Linear layers with 8-bit floating point weights (e4m3; Micikevicius et al., arXiv:2209.05433), for answering.

One float32 scale an output channel. GPUs with fp8 units (Ada, Hopper and later) multiply in fp8, each input row scaled to the
range as well; other machines turn the weight back into 16 bit for every product, which saves memory and no time.
"""

from __future__ import annotations

import torch
from torch import nn

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
UNITS_SINCE = (8, 9)
"""Compute capability of the first GPUs with fp8 units."""
MULTIPLE = 16
"""Of the sizes that torch._scaled_mm takes."""


class Fp8Linear(nn.Module):
    """`linear` with its weight in fp8 on `device`; inputs and outputs keep their dtype."""

    def __init__(self, linear: nn.Linear, device: torch.device):
        super().__init__()
        weight, scale = scaled(linear.weight.detach().to(device))
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(device), requires_grad=False)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._units = has_units(device) and self.in_features % MULTIPLE == 0 and self.out_features % MULTIPLE == 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in_features) to (..., out_features)."""
        if not self._units:
            weight = self.weight.to(x.dtype) * self.scale.to(x.dtype)
            return nn.functional.linear(x, weight, self.bias)
        rows, scale = scaled(x.reshape(-1, self.in_features))
        out = torch._scaled_mm(rows, self.weight.t(), scale_a=scale, scale_b=self.scale.t(), bias=self.bias, out_dtype=x.dtype)
        return out.reshape(*x.shape[:-1], self.out_features)


def scaled(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows in fp8, float32 scales (n, 1)) of `rows` (n, m): the largest value of a row becomes the largest of fp8."""
    scale = rows.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    return (rows / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


def has_units(device: torch.device) -> bool:
    """Whether `device` multiplies fp8 in hardware."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= UNITS_SINCE


def convert(model: nn.Module, device: torch.device) -> None:
    """Replace the linear layers of the decoder by fp8 ones and move the rest to `device`.

    The head and the adapters keep 16 bit, as with bitsandbytes: they are small, or decide between near tokens.
    """
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and module is not head and "lora_" not in name:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Fp8Linear(module, device))
    model.to(device)
