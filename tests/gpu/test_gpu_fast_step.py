"""The fast step on a GPU: its one-launch weights, and what it learns, against the same on the CPU."""

import copy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))

from apart import apart
from bitsandbytes.functional import dequantize_4bit
from test_fast_precision import widened
from test_fast_step import adapted, choice, documents, learned
from unwaited import nothing_waits

from tunestation.training import clipping
from tunestation.training.batches import Collate, lay, placed
from tunestation.training.fast import ops
from tunestation.training.fast.float8 import quantise_base
from tunestation.training.fast.kept import Keep
from tunestation.training.fast.model import Fast

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


def batch_on_gpu(rows, collate=lay):
    """A micro-batch on the GPU."""
    return placed(collate(rows), torch.device("cuda"))


def errors(one, other):
    """Relative L2 error of each gradient."""
    return {name: ((other[1][name].float() - grad.float()).norm() / grad.float().norm()).item() for name, grad in one[1].items()}


def in_32_bits(model):
    """A copy of an adapted model that multiplies in fp32, by the same weights: what it learns is exact beside 16 bits."""
    model = copy.deepcopy(model)
    for module in model.modules():
        weight = getattr(getattr(module, "base_layer", None), "weight", None)
        if hasattr(weight, "quant_state"):
            found = dequantize_4bit(weight.data, weight.quant_state)
            bias = module.base_layer.bias
            module.base_layer = torch.nn.Linear(*found.shape[::-1], bias is not None, device=found.device).requires_grad_(False)
            module.base_layer.weight.data.copy_(found)
            if bias is not None:
                module.base_layer.bias.data.copy_(bias)
    return model.float()


def every_gradient_is_near_to_the_exact_one(base, family, taken):
    """Whatever is kept, where `taken` says of all layers that they take what is tested.

    transformers' own in 16 bits are as far from it, so that the distance to those says little of a model as small as this.
    """
    model, rows = adapted(base, family).cuda(), documents()
    exact = learned(in_32_bits(model), batch_on_gpu(rows, Collate(0)))
    fast = Fast.over(model)
    assert all(map(taken, fast.layers))
    for keep in (Keep.MORE, Keep.ALL, Keep.ATTENTION, Keep.INPUT):
        fast.keep(choice([keep] * 3, 2))
        after = learned(model, batch_on_gpu(rows))
        assert after[0] == pytest.approx(exact[0], rel=3e-2)
        assert max(errors(exact, after).values()) < 3e-2


def as_near_to_32_bits(monkeypatch, module):
    """Gradients with what `module` brings are as near to exact ones as without it."""
    found = []
    for taken in (True, False):
        monkeypatch.setattr(module, "known", lambda *_, taken=taken: taken)
        model = adapted("bfloat16").cuda()
        Fast.over(model).keep(choice([Keep.MORE] * 3))
        found.append(learned(model, batch_on_gpu(documents())))
    exact = learned(in_32_bits(adapted("bfloat16").cuda()), batch_on_gpu(documents(), Collate(0)))
    mine, other = (sum(errors(exact, each).values()) for each in found)
    assert mine < 1.05 * other


@pytest.mark.parametrize("lengths", [(30, 30, 30), (7, 19, 30, 30)])
@pytest.mark.parametrize("base", ["bfloat16", "nf4"])
def test_it_learns_what_transformers_and_peft_learn(base, lengths):
    model, rows = adapted(base).cuda(), documents(lengths)
    before = learned(model, batch_on_gpu(rows, Collate(0)))
    fast = Fast.over(model)
    for dense in (0, 3):
        fast.keep(choice([Keep.ALL] * 3, dense))
        after = learned(model, batch_on_gpu(rows))
        assert after[0] == pytest.approx(before[0], rel=3e-2)
        assert max(errors(before, after).values()) < 3e-2


def test_in_32_bits_it_learns_what_transformers_and_peft_learn():
    """Of documents of one length: attention over others has kernels for 16 bits alone."""
    model, rows = adapted("float32").cuda(), documents((30, 30, 30))
    before = learned(model, batch_on_gpu(rows, Collate(0)))
    Fast.over(model).keep(choice([Keep.ALL, Keep.ATTENTION, Keep.INPUT]))
    after = learned(model, batch_on_gpu(rows))
    assert after[0] == pytest.approx(before[0], rel=1e-5)
    assert max(errors(before, after).values()) < 1e-5


@pytest.mark.parametrize("wide", [torch.float32, torch.bfloat16])
def test_sums_over_tokens_are_scaled_and_rounded_once(wide):
    torch.manual_seed(0)
    left, right = (torch.randn(4096, columns + 8, device="cuda", dtype=torch.bfloat16)[:, 8:] for columns in (192, 64))
    out, exact = torch.empty(192, 64, device="cuda", dtype=wide), 0.3 * left.double().t() @ right.double()
    ops.outer(left, right, out, 0.3)
    assert (out - exact).norm() < (1e-5 if wide == torch.float32 else 2e-3) * exact.norm()


@pytest.mark.parametrize("keep", [Keep.MORE, Keep.ALL])
def test_adapters_in_32_bits_over_16_learn_in_32_bits(keep):
    model = widened(adapted("nf4")).cuda()
    exact = learned(in_32_bits(model), batch_on_gpu(documents(), Collate(0)))
    Fast.over(model).keep(choice([keep] * 3, 3))
    found = learned(model, batch_on_gpu(documents()))
    assert max(errors(exact, found).values()) < 3e-2
    assert {grad.dtype for grad in found[1].values()} == {torch.float32}


@pytest.mark.parametrize("base", ["bfloat16", "nf4"])
def test_what_is_kept_changes_no_bit_of_the_loss_and_hardly_a_gradient(base):
    """Attention's gradients are summed in no fixed order on a GPU."""
    found = []
    for keep in ([Keep.ALL] * 3, [Keep.MORE] * 3, [Keep.ATTENTION] * 3, [Keep.INPUT] * 3):
        for dense in (0, 2):
            model = adapted(base, dropout=0.2).cuda().train()
            Fast.over(model).keep(choice(keep, dense))
            torch.manual_seed(5)
            found.append(learned(model, batch_on_gpu(documents())))
    for other in found[1:]:
        assert other[0] == found[0][0]
        assert max(errors(found[0], other).values()) < 2e-2


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("lengths", [(30, 30, 30), (7, 19, 30, 30)])
@pytest.mark.parametrize("base", ["bfloat16", "nf4", "fp8"])
def test_in_one_order_gradients_have_the_same_bits_whatever_is_kept(base, lengths, dropout):
    found = []
    for keep, dense in ((Keep.MORE, 3), (Keep.MORE, 3), (Keep.MORE, 0), (Keep.ALL, 2), (Keep.ATTENTION, 0), (Keep.INPUT, 1)):
        model = adapted("bfloat16" if base == "fp8" else base, dropout=dropout).cuda().train()
        if base == "fp8":
            quantise_base(model, torch.device("cuda"))
        fast = Fast.over(model, in_order=True)
        fast.keep(choice([keep] * 3, dense))
        torch.manual_seed(5)
        found.append(learned(model, batch_on_gpu(documents(lengths))))
    for other in found[1:]:
        assert other[0] == found[0][0]
        assert all(torch.equal(grad, other[1][name]) for name, grad in found[0][1].items())
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("base", ["bfloat16", "nf4", "fp8"])
def test_adapters_as_one_weight_a_layer_learn_what_single_ones_learn(base):
    found = []
    for together in (False, True):
        model = adapted("bfloat16" if base == "fp8" else base, dropout=0.2).cuda().train()
        if base == "fp8":
            quantise_base(model, torch.device("cuda"))
        fast = Fast.over(model)
        if together:
            fast.join()
        fast.keep(choice([Keep.INPUT] * 3))
        torch.manual_seed(5)
        loss, gradients = learned(model, batch_on_gpu(documents()))
        found.append((loss, gradients) if not together else apart(fast, (loss, gradients)))
    assert found[0][0] == found[1][0]
    assert found[0][1].keys() == found[1][1].keys() and max(errors(*found).values()) < 2e-2


def test_one_launch_writes_the_buffer_that_single_copies_write():
    for targets in ("all-linear", ["q_proj", "v_proj", "up_proj"]):
        model = adapted("nf4", targets=targets).cuda()
        for projection in Fast.over(model).layers[1].projections:
            assert projection.filling.agrees(torch.empty(0, dtype=torch.bfloat16, device="cuda"))


def test_an_8_bit_base_learns_nearly_what_16_bit_learn():
    model, rows = adapted("bfloat16").cuda(), documents()
    before = learned(model, batch_on_gpu(rows, Collate(0)))
    quantise_base(model, torch.device("cuda"))
    Fast.over(model)
    after = learned(model, batch_on_gpu(rows))
    assert after[0] == pytest.approx(before[0], rel=3e-2)
    assert max(errors(before, after).values()) < 0.25


def test_weights_that_others_have_moved_between_micro_batches_are_found():
    model = adapted("nf4").cuda()
    fast = Fast.over(model)
    fast.join()
    fast.keep(choice([Keep.INPUT] * 3))
    found = []
    for _ in range(2):
        found.append(learned(model, batch_on_gpu(documents())))
        for weight in model.parameters():
            old, weight.data = weight.data, weight.data.clone()
            old.view(torch.uint8).fill_(255)  # no number in any format
    assert found[0][0] == found[1][0] and max(errors(*found).values()) < 2e-2


def test_clipping_does_not_wait_for_the_gpu():
    optimizer = SimpleNamespace(clip_grad=1.0, loss_scale=1.0)
    gradient, norm = torch.ones(1000, device="cuda"), torch.full((), 1000.0**0.5, device="cuda")
    with nothing_waits():
        clipping.mask_invalid(norm, device=norm.device)
        clipping.unscale_and_clip(optimizer, [gradient], norm)
    assert gradient.norm().item() == pytest.approx(1.0, rel=1e-4)
