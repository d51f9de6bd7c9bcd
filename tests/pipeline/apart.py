"""What adapters learned as one weight a layer, adapter by adapter."""

from __future__ import annotations

import torch

from tunestation.training.checkpoints import JOINED
from tunestation.training.fast.model import Fast


def apart(fast: Fast, found: tuple[float, dict[str, torch.Tensor]]) -> tuple[float, dict[str, torch.Tensor]]:
    """(loss, gradients of each A and B) where those of layers came as one."""
    loss, gradients = found
    names = {weight: name for name, weight in fast.model.named_parameters() if "lora_" in name}
    taken = {}
    for index, layer in enumerate(fast.layers):
        (flat,) = (grad for name, grad in gradients.items() if name.endswith(f"layers.{index}.{JOINED}"))
        views = layer.layout.views(flat)
        taken |= {f"base_model.model.{names[weight]}": view for weight, view in zip(layer.layout.weights, views, strict=True)}
    return loss, taken
