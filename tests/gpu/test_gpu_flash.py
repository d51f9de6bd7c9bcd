"""Attention by FlashAttention 4 and the loss by QuACK, on a Hopper GPU that has them."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))

from test_gpu_fast_step import as_near_to_32_bits, every_gradient_is_near_to_the_exact_one

from tunestation.training.fast import flash, hopper, ops, quack_loss
from tunestation.training.fast.attention import ByTorch, Documents, side_by_side
from tunestation.training.fast.flash import Flash

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
LENGTHS = {"equal": [512] * 4, "one": [700], "packs": [3, 1, 640, 17, 64, 128, 65, 400], "many": [5] * 300 + [7]}


@pytest.fixture(autouse=True)
def here():
    """Skips where there is none."""
    if not hopper.has(torch.device("cuda", 0), torch.bfloat16, "flash-attn-4"):
        pytest.skip("needs a Hopper GPU and FlashAttention 4")
    assert all(flash.known(torch.device("cuda", 0), torch.bfloat16, (16, 8), 128, in_order) for in_order in (False, True))


def given(lengths, heads, size, in_order=False):
    """q, k, v side by side, as a product leaves them, the gradient of attention, and where documents lie."""
    torch.manual_seed(0)
    tokens, (many, few) = sum(lengths), heads
    rows = torch.randn(tokens, (many + 2 * few) * size, device="cuda", dtype=torch.bfloat16)
    grad = torch.randn(tokens, many, size, device="cuda", dtype=torch.bfloat16)
    cu = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
    return side_by_side(rows, (many, few, few), size), grad, Documents(cu, max(lengths), tokens, in_order)


def summed(made, grad, places=None):
    """The gradients of attention that was `made`, with all of their parts."""
    found, rest = made.gradients(grad, places)
    ops.add_up(rest, found[1:])
    return found


def room(tokens, columns):
    """Rows of NaN with room behind each."""
    return torch.full((tokens, columns + 64), float("nan"), device="cuda", dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("heads", "size", "apart"),
    [((16, 8), 128, False), ((16, 8), 128, True), ((4, 4), 128, False), ((8, 2), 64, False), ((8, 2), 64, True)],
)
@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("kind", list(LENGTHS))
def test_it_is_torchs_attention_in_rows_with_room_behind_them(kind, in_order, apart, size, heads):
    """Queries of one key going backward together, or one after the other."""
    of, grad, where = given(LENGTHS[kind], heads, size, in_order)
    wanted = ByTorch(*(x.float().cpu() for x in of), Documents(where.cu_seqlens.cpu(), where.longest, where.tokens), size**-0.5)
    out, grads = room(where.tokens, heads[0] * size), room(where.tokens, (heads[0] + 2 * heads[1]) * size)
    found = Flash(*of, where, size**-0.5, out[:, : heads[0] * size])
    assert found.result.data_ptr() == out.data_ptr()
    places = side_by_side(grads[:, :-64], (heads[0], heads[1], heads[1]), size)
    found.apart = apart
    turned = summed(found, grad, places)
    assert all(each is place for each, place in zip(turned, places, strict=True))
    for mine, other in zip((found.result, *places), (wanted.result, *wanted.gradients(grad.float().cpu())[0]), strict=True):
        assert (mine.cpu().float() - other).norm() <= 1e-2 * other.norm()
    assert out[:, -64:].isnan().all() and grads[:, -64:].isnan().all()


@pytest.fixture(params=[8192, 1], ids=["together", "apart"])
def many(request, monkeypatch):
    """From how many tokens on queries that share a key go backward one after the other."""
    monkeypatch.setattr(flash, "MANY", request.param)
    return request.param


@pytest.mark.parametrize("kind", ["equal", "packs"])
def test_in_one_order_gradients_have_the_same_bits_each_time(kind, many):
    of, grad, where = given(LENGTHS[kind], (16, 8), 128, in_order=True)
    assert Flash(*of, where, 0.1).apart is (many == 1)
    first = summed(Flash(*of, where, 0.1), grad)
    for _ in range(5):
        assert all(torch.equal(one, other) for one, other in zip(first, summed(Flash(*of, where, 0.1), grad), strict=True))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("base", ["bfloat16", "nf4"])
def test_every_gradient_is_near_to_the_exact_one(base, family, many):
    every_gradient_is_near_to_the_exact_one(base, family, lambda layer: layer.attention is Flash)


def test_it_is_as_near_to_32_bits_as_torchs_attention(monkeypatch, many):
    as_near_to_32_bits(monkeypatch, flash)


@pytest.mark.parametrize("vocabulary", [512, 32000, 92544, 152064])
def test_losses_and_gradients_are_those_of_our_kernel(vocabulary):
    from tunestation.training.fast import product_kernels

    torch.manual_seed(0)
    assert quack_loss.known(torch.device("cuda", 0), torch.bfloat16, vocabulary)
    logits, targets = (3 * torch.randn(130, vocabulary, device="cuda")).bfloat16(), torch.randint(vocabulary, (130,), device="cuda")
    both = [(logits.clone(), torch.empty(130, device="cuda")) for _ in range(2)]
    for (mine, losses), kernel in zip(both, (ops.cross_entropy, product_kernels.cross_entropy), strict=True):
        kernel(mine, targets, losses)
    for mine, wanted in zip(*both, strict=True):
        assert (mine.float() - wanted.float()).norm() <= 4e-3 * wanted.float().norm()
