"""4-bit weights read back: to the bit by their format, in our code and in what bitsandbytes does on a CPU."""

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from torch import nn

from tunestation.models import four_bit
from tunestation.training.fast import nf4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", [(64, 128), (193, 1024), (256, 688), (7, 10), (12, 2080), (5, 48)])
def test_nf4_weights_come_back_to_the_bit_as_bitsandbytes_lays_them_out(shape, nested, dtype):
    torch.manual_seed(0)
    weight = bnb.nn.Params4bit(torch.randn(shape, dtype=dtype) * 0.3, requires_grad=False, quant_type="nf4", compress_statistics=nested)
    weight = weight.to("cpu")
    assert nf4.supported(weight)
    out = torch.full((shape[0], shape[1] + 24), float("nan"), dtype=dtype)
    nf4.dequantise(weight, out[:, : shape[1]])
    assert torch.equal(out[:, : shape[1]], laid_out(weight, dtype))
    assert torch.equal(dequantize_4bit(weight.data, weight.quant_state), laid_out(weight, dtype))
    assert out[:, shape[1] :].isnan().all()


def laid_out(weight, dtype):
    """The weights behind NF4 codes, by the format: two codes a byte, a scale for 64 consecutive weights of the flattened matrix."""
    state, packed = weight.quant_state, weight.data.view(-1)
    scales = state.absmax
    if state.nested:
        scales = state.state2.code[scales.int()] * state.state2.absmax.repeat_interleave(256)[: len(scales)] + state.offset
    codes = torch.stack([packed >> 4, packed & 15], 1).view(-1)[: state.shape.numel()].int()
    return (state.code[codes] * scales.repeat_interleave(64)[: len(codes)]).to(dtype).view(state.shape)


def test_a_layer_of_bitsandbytes_whose_rows_end_within_a_block_multiplies_with_its_weights():
    """Its own kernel for CPUs with AVX-512 takes the scales of other blocks there."""
    torch.manual_seed(0)
    linear = nn.Linear(688, 256, bias=False).bfloat16()
    layer = bnb.nn.Linear4bit(688, 256, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    layer.load_state_dict(linear.state_dict())
    layer = layer.to("cpu")
    four_bit.keep_weights_in_place(layer)
    x = torch.randn(9, 688, dtype=torch.bfloat16, requires_grad=True)
    y = layer(x)
    assert torch.equal(y, x @ laid_out(layer.weight, torch.bfloat16).t())
    assert (y - linear(x)).norm() < 0.12 * linear(x).norm()
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(slope, torch.ones_like(y) @ laid_out(layer.weight, torch.bfloat16))
