"""The base as training held it: what quantising and reading back leaves of each weight."""

from __future__ import annotations

from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from transformers.quantizers.base import get_keys_to_not_convert

import tunestation.models.four_bit  # noqa: F401  bitsandbytes reads any shape right on a CPU then
from tunestation.export.merging import Rounding
from tunestation.export.streamed import empty_model


def quantised(folder: Path, kind: str, double_quant: bool) -> Rounding:
    """4-bit weights (`kind`: nf4, arXiv 2305.14314) in blocks of 64, read back in bfloat16; of the layers that training quantises."""
    names = quantised_weights(folder)

    def rounding(name: str, weight: torch.Tensor) -> torch.Tensor:
        if name not in names:
            return weight
        packed, state = quantize_4bit(weight.bfloat16(), blocksize=64, compress_statistics=double_quant, quant_type=kind)
        return dequantize_4bit(packed, state)

    return rounding


def quantised_weights(folder: Path) -> set[str]:
    """Names of the weights of linear layers, without the head: what transformers hands to bitsandbytes."""
    model = empty_model(folder)
    kept = tuple(get_keys_to_not_convert(model))
    layers = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return {f"{name}.weight" for name in layers if not name.startswith(kept)}
