"""The base as training held it: what quantising and reading back leaves of each weight."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from transformers.quantizers.base import get_keys_to_not_convert

import tunestation.models.four_bit  # noqa: F401  bitsandbytes reads any shape right on a CPU then
from tunestation.export.merging import Rounding
from tunestation.models.architecture import empty_model
from tunestation.training.fast.ops import quantise_rows


def quantised(folder: Path, kind: str, double_quant: bool) -> Rounding:
    """Weights of the layers that training quantises, read back in bfloat16.

    `kind` nf4: in 4 bits, in blocks of 64 (arXiv 2305.14314); fp8: in 8-bit floats with a scale for each row.
    """
    names, read_back = quantised_weights(folder), _in_8_bits if kind == "fp8" else partial(_in_4_bits, double_quant)
    return lambda name, weight: read_back(weight.bfloat16()) if name in names else weight


def _in_4_bits(double_quant: bool, weight: torch.Tensor) -> torch.Tensor:
    packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=double_quant, quant_type="nf4")
    return dequantize_4bit(packed, state)


def _in_8_bits(weight: torch.Tensor) -> torch.Tensor:
    quantised, scales = quantise_rows(weight)
    return (quantised.float() * scales).bfloat16()


def quantised_weights(folder: Path) -> set[str]:
    """Names of the weights of linear layers, without the head: what transformers hands to bitsandbytes, and training to 8 bits."""
    model = empty_model(folder)
    kept = tuple(get_keys_to_not_convert(model))
    layers = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return {f"{name}.weight" for name in layers if not name.startswith(kept)}
