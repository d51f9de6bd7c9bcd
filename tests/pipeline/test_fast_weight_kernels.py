"""Triton kernels that write weights for the products: to the bit as bitsandbytes and single copies do, on a GPU or by the interpreter."""

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from test_fast_kernels import DEVICE, DTYPE, PAD, numbers, pytestmark  # noqa: F401  marks of this file too

from tunestation.training.fast import nf4, product_kernels
from tunestation.training.fast.weights import Buffer, Filling, Member, Together


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", [(64, 128), (193, 1024), (5, 64), (256, 688), (7, 10), (12, 2080)])
def test_nf4_to_the_bit_of_bitsandbytes(shape, nested):
    weight = bnb.nn.Params4bit(numbers(*shape) * 0.3, requires_grad=False, quant_type="nf4", compress_statistics=nested).to(DEVICE)
    out = torch.full((shape[0], shape[1] + PAD), float("nan"), dtype=DTYPE, device=DEVICE)
    state = weight.quant_state
    table = (state.state2.code, state.state2.absmax, state.offset) if nested else None
    product_kernels.dequantise_nf4(weight.data.view(-1), state.code, state.absmax, table, out[:, : shape[1]])
    assert torch.equal(out[:, : shape[1]], dequantize_4bit(weight.data, state))
    assert out[:, shape[1] :].isnan().all()
    assert nf4.supported(weight)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize(("sizes", "columns", "ranks"), [((64, 128, 64), 192, (8, 0, 4)), ((256,), 688, (8,)), ((64, 64), 1088, (0, 16))])
def test_one_launch_writes_what_single_copies_write(sizes, columns, ranks, base, nested):
    written_alike(sizes, columns, ranks, base, nested, False)


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("ranks", [(8, 8), (0, 16), (8, 0)])
@pytest.mark.parametrize("columns", [192, 1088])
def test_one_launch_writes_outputs_in_turn_as_single_copies_do(columns, ranks, base):
    written_alike((64, 64), columns, ranks, base, True, True)


def written_alike(sizes, columns, ranks, base, nested, paired):
    """Both ways to write a buffer give the same bits."""
    filling = Filling([Member(layer(size, columns, rank, nested)) for size, rank in zip(sizes, ranks, strict=True)], base, paired)
    one, other = torch.zeros(2, Buffer.numbers(*filling.shape), dtype=DTYPE, device=DEVICE)
    with torch.no_grad():
        filling._at_once(Buffer(one, *filling.shape), base)
        filling._singly(Buffer(other, *filling.shape), base)
    assert torch.equal(one, other)
    assert one.abs().sum() > 0


def test_the_same_launch_again_writes_what_is_there_by_then_and_others_are_read_where_they_are():
    filling = Filling([Member(layer(128, 192, 8, True))], True)
    one, other = (Buffer(flat, *filling.shape) for flat in torch.zeros(2, Buffer.numbers(*filling.shape), dtype=DTYPE, device=DEVICE))
    a, b = filling.members[0].adapter
    with torch.no_grad():
        for change in (lambda: None, lambda: b.mul_(3), lambda: setattr(a, "data", a.data.neg()), lambda: None):
            change()
            filling.known = False
            filling._at_once(one, True)
            filling._singly(other, True)
            assert torch.equal(one.forward, other.forward)
            assert torch.equal(one.backward, other.backward)
    assert len(one.launches) == 1


@torch.no_grad()
@pytest.mark.parametrize("paired", [False, True])
def test_adapters_of_several_layers_are_written_together_as_one_by_one(paired):
    """Those that are not alike in launches of their own."""
    kinds = [(64, 64, 8), (64, 64, 8), (64, 32, 8) if not paired else (64, 64, 4)]
    fillings = [Filling([Member(layer(size, 192, rank, True)) for size in sizes], True, paired) for *sizes, rank in kinds]
    every = [[Buffer(torch.zeros(Buffer.numbers(*each.shape), dtype=DTYPE, device=DEVICE), *each.shape) for each in fillings] for _ in "12"]
    for filling in fillings:
        filling.possible = lambda *_: True  # the interpreter's numbers are on a CPU
    groups = Together.of(list(zip(fillings, every[0], strict=True)))
    assert [len(group.fillings) for group in groups] == [2, 1] and all(group.agrees() for group in groups)
    for change in (lambda a: None, lambda a: a.neg_(), lambda a: setattr(a, "data", a.data * 2), lambda a: None):
        for filling, one in zip(fillings, every[1], strict=True):
            change(filling.members[1].adapter[1])
            filling.known = False
            filling._singly(one, False)
        for group in groups:
            group.write()
        for one, other in zip(*every, strict=True):
            assert torch.equal(one.forward, other.forward) and torch.equal(one.backward, other.backward)
            assert one.b.abs().sum() > 0


def layer(outputs, inputs, rank, nested):
    """An NF4 layer under an adapter of `rank`, bare for 0."""
    weight = bnb.nn.Params4bit(numbers(outputs, inputs), requires_grad=False, quant_type="nf4", compress_statistics=nested)
    bare = bnb.nn.Linear4bit(inputs, outputs, bias=False, compute_dtype=DTYPE, quant_type="nf4", device="meta")
    bare.weight = weight.to(DEVICE)
    if not rank:
        return bare
    adapted = LoraLinear(bare, "default", LoraConfig(r=rank, lora_alpha=12), r=rank, lora_alpha=12)
    adapted.lora_B["default"].weight.data.normal_()
    return adapted.to(DEVICE)
