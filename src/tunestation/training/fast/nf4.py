"""NF4 weights (QLoRA, arXiv 2305.14314, section 3) back to floats, into rows of any stride, to the bit as bitsandbytes does it.

The format, as bitsandbytes writes it: two codes a byte, the first in the high half; one scale for 64 consecutive weights of the flattened
matrix, so that blocks may go over the end of a row. With double quantisation a scale is itself a code into a table of 256 values, times an
fp32 scale for each 256 of them, plus an fp32 mean.
"""

from __future__ import annotations

import torch
from bitsandbytes.functional import dequantize_blockwise

import tunestation.models.four_bit  # noqa: F401  bitsandbytes reads any shape right on a CPU then

BLOCK = 64
NESTED_BLOCK = 256


def supported(weight: torch.nn.Parameter) -> bool:
    """Whether `weight` is NF4 in the block sizes above."""
    state = getattr(weight, "quant_state", None)
    if state is None or state.quant_type != "nf4" or state.blocksize != BLOCK or weight.dtype != torch.uint8:
        return False
    return not state.nested or state.state2.blocksize == NESTED_BLOCK


def dequantise(weight: torch.nn.Parameter, out: torch.Tensor) -> None:
    """Write the weights behind `weight` to `out` [out_features, in_features], whose rows may be strided."""
    state, packed = weight.quant_state, weight.data
    if packed.is_cuda:
        from tunestation.training.fast import product_kernels

        nested = (state.state2.code, state.state2.absmax, state.offset) if state.nested else None
        return product_kernels.dequantise_nf4(packed.view(-1), state.code, state.absmax, nested, out)
    scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    out.copy_(torch.ops.bitsandbytes.dequantize_4bit(packed, scales, BLOCK, "nf4", state.shape, out.dtype))
