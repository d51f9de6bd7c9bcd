"""What bitsandbytes does wrong with 4-bit weights on CPUs, put right. Importing this module repairs reading them back.

bitsandbytes scales consecutive blocks of the flattened weight. Its AVX-512 kernel (0.50.2) takes another block's scale where rows are a
multiple of 16 weights but not of the block: a relative error of 0.25 instead of NF4's 0.09. Here it only ever sees rows of one block.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import prod

import bitsandbytes
import torch
from torch.nn.functional import pad

_theirs = torch.library.get_kernel("bitsandbytes::dequantize_4bit", "CPU")
_library = torch.library.Library("bitsandbytes", "IMPL")


def _dequantize_4bit(
    keys: object, packed: torch.Tensor, absmax: torch.Tensor, blocksize: int, quant_type: str, shape: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    """Weights of `shape` in `dtype` from two codes a byte and fp32 absmax [blocks]."""
    packed = packed.reshape(-1).view(torch.uint8)
    if missing := len(absmax) * blocksize // 2 - len(packed):
        packed = pad(packed, (0, missing))
    rows = _theirs.call_boxed(keys, packed, absmax, blocksize, quant_type, (len(absmax), blocksize), dtype)
    return rows.view(-1)[: prod(shape)].view(shape)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # that a kernel is replaced is the purpose
    _library.impl("dequantize_4bit", _dequantize_4bit, "CPU", with_keyset=True, allow_override=True)


def keep_weights_in_place(model: torch.nn.Module) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes repacks a 4-bit weight at its first evaluation; training on it is silently wrong."""
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
