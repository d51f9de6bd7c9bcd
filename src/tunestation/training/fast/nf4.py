"""NF4 weights (QLoRA, arXiv 2305.14314, section 3) back to floats, into rows of any stride, to the bit as bitsandbytes does it.

The format, as bitsandbytes writes it: two codes a byte, the first in the high half; one scale for 64 consecutive weights. With double
quantisation a scale is itself a code into a table of 256 values, times an fp32 scale for each 256 of them, plus an fp32 mean.
"""

from __future__ import annotations

import torch

BLOCK = 64
NESTED_BLOCK = 256


def supported(weight: torch.nn.Parameter) -> bool:
    """Whether `weight` is NF4 in the block sizes above, and no block goes over the end of a row."""
    state = getattr(weight, "quant_state", None)
    if state is None or state.quant_type != "nf4" or state.blocksize != BLOCK or weight.dtype != torch.uint8:
        return False
    return state.shape[1] % BLOCK == 0 and (not state.nested or state.state2.blocksize == NESTED_BLOCK)


def dequantise(weight: torch.nn.Parameter, out: torch.Tensor) -> None:
    """Write the weights behind `weight` to `out` [out_features, in_features], whose rows may be strided."""
    state = weight.quant_state
    packed = weight.data.view(-1)
    nested = (state.state2.code, state.state2.absmax, state.offset) if state.nested else None
    if packed.is_cuda:
        from tunestation.training.fast import product_kernels

        return product_kernels.dequantise_nf4(packed, state.code, state.absmax, nested, out)
    scales = state.absmax
    if nested:
        table, scales2, mean = nested
        scales = table[scales.int()] * scales2.repeat_interleave(NESTED_BLOCK)[: len(scales)] + mean
    codes = torch.stack([packed >> 4, packed & 15], 1).view(-1, BLOCK).int()
    out.copy_((state.code[codes] * scales[:, None]).view(out.shape))
