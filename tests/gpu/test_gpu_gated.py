"""Products with the activation inside of them, on a Hopper GPU with QuACK."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))

from test_fast_step import adapted, choice, documents, learned
from test_gpu_fast_step import as_near_to_32_bits, batch_on_gpu, errors, every_gradient_is_near_to_the_exact_one

from tunestation.training.fast import gated
from tunestation.training.fast.kept import Keep
from tunestation.training.fast.model import Fast

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


@pytest.fixture(autouse=True)
def kernels():
    """Skips where there are none."""
    if not gated.known(torch.device("cuda", 0), torch.bfloat16):
        pytest.skip("needs a Hopper GPU and QuACK")
    from tunestation.training.fast import gated_kernels

    return gated_kernels


def given(tokens, columns, gates):
    """x, the weights of a gated product and of the one behind it, with room behind rows as a projection has it."""
    torch.manual_seed(0)
    wide = torch.randn(2 * gates, columns + 64, device="cuda", dtype=torch.bfloat16)[:, :columns].t()
    narrow = torch.randn(columns, gates + 64, device="cuda", dtype=torch.bfloat16)[:, :gates]
    return torch.randn(tokens, columns, device="cuda", dtype=torch.bfloat16), wide, narrow


def room(tokens, columns):
    """Rows of NaN with room behind each."""
    return torch.full((tokens, columns + 64), float("nan"), device="cuda", dtype=torch.bfloat16)[:, :columns]


@pytest.mark.parametrize("tokens", [4096, 2049, 777, 1])
def test_sums_have_the_bits_of_the_matrix_library_and_what_goes_on_from_them_is_near(kernels, tokens):
    x, wide, narrow = given(tokens, 1152, 2720)
    gate_up, out, grads, again = room(tokens, 5440), room(tokens, 2720), room(tokens, 5440), room(tokens, 2720)
    kernels.product(x, wide, gate_up, out)
    assert torch.equal(gate_up, x @ wide)
    kernels.backward(x, narrow, gate_up, grads, again)
    assert torch.equal(out, again)
    theirs = [each.cpu() for each in (x, wide, narrow, torch.empty_like(gate_up), torch.empty_like(out), torch.empty_like(out))]
    x, wide, narrow, there, wanted, result = theirs
    gated.product(x, wide, there, wanted)
    gated.backward(x, narrow, there, there, result)
    for mine, other in ((out, wanted), (grads, there), (again, result)):
        assert (mine.cpu().float() - other.float()).norm() <= 1e-2 * other.float().norm()


def test_the_activation_is_exact_to_rounding_at_every_gate(kernels):
    """From where silu is nearly 0 to where it is nearly the gate itself."""
    gates = torch.linspace(-30, 30, 2048, device="cuda", dtype=torch.bfloat16)
    x, wide = torch.ones(128, 64, device="cuda", dtype=torch.bfloat16), torch.zeros(4096, 64, device="cuda", dtype=torch.bfloat16)
    wide[0::2, 0], wide[1::2, 0] = gates, 1.0
    gate_up, out = room(128, 4096), room(128, 2048)
    kernels.product(x, wide.t(), gate_up, out)
    wanted = torch.nn.functional.silu(gates.double())
    assert ((out[0].double() - wanted).abs() <= 2**-8 * wanted.abs() + 1e-12).all()


@pytest.mark.parametrize("tokens", [2049, 777])
def test_what_is_added_to_the_gradient_of_an_activation_reaches_gate_and_up(kernels, tokens):
    x, wide, narrow = given(tokens, 1152, 2720)
    gate_up, out = room(tokens, 5440), room(tokens, 2720)
    kernels.product(x, wide, gate_up, out)
    added = 30 * torch.randn(tokens, 2720, device="cuda", dtype=torch.bfloat16)
    wanted = torch.empty(tokens, 5440, dtype=torch.bfloat16)
    gated.backward(x.cpu(), narrow.cpu(), gate_up.cpu(), wanted, None, added.cpu())
    for result in (None, added.clone()):
        grads = room(tokens, 5440)
        kernels.backward(x, narrow, gate_up, grads, result, added if result is None else result)
        assert (grads.cpu().float() - wanted.float()).norm() <= 1e-2 * wanted.float().norm()
        assert result is None or torch.equal(result, out)


def test_gradients_may_take_the_place_of_gate_and_up(kernels):
    x, wide, narrow = given(4096, 1152, 2720)
    gate_up, out, grads = room(4096, 5440), room(4096, 2720), room(4096, 5440)
    kernels.product(x, wide, gate_up, out)
    kernels.backward(x, narrow, gate_up, grads)
    for _ in range(3):
        there = room(4096, 5440).copy_(gate_up)
        kernels.backward(x, narrow, there, there)
        assert torch.equal(there, grads)
    assert not grads.isnan().any()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("base", ["bfloat16", "nf4"])
def test_every_gradient_is_near_to_the_exact_one(base, family):
    every_gradient_is_near_to_the_exact_one(base, family, lambda layer: layer.gate_up.paired)


def test_inside_or_after_the_product_an_activation_is_as_near_to_32_bits(monkeypatch):
    as_near_to_32_bits(monkeypatch, gated)


def test_with_dropout_it_learns_what_an_activation_after_its_product_does(monkeypatch):
    found = []
    for inside in (True, False):
        monkeypatch.setattr(gated, "known", lambda _device, _dtype, inside=inside: inside)
        model = adapted("nf4", dropout=0.2).cuda().train()
        fast = Fast.over(model)
        assert [layer.gate_up.paired for layer in fast.layers] == [inside] * 3
        fast.keep(choice([Keep.MORE] * 3))
        torch.manual_seed(5)
        found.append(learned(model, batch_on_gpu(documents())))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3)
    assert max(errors(*found).values()) < 3e-2
