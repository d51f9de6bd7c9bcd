"""The fast step in 16 bits: as near to exact gradients as it should be, and adapters in the precision in which they learn."""

import copy

import pytest
import torch
from test_fast_step import FAMILIES, adapted, documents, error, joined, learned, same, stock_and_fast

from tunestation.training.batches import Collate, lay
from tunestation.training.fast import ops
from tunestation.training.fast.model import Fast


def mean_error(exact, found):
    """Mean relative L2 error of all gradients."""
    errors = [(found[1][name].float() - grad).norm() / grad.norm() for name, grad in exact[1].items()]
    return sum(errors).item() / len(errors)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("base", ["bfloat16", "nf4"])
def test_in_16_bit_it_learns_what_transformers_and_peft_learn(base, family):
    model, rows = adapted(base, family), documents()
    before, _ = stock_and_fast(model, rows)
    after = learned(model, lay(rows))
    assert error(joined(before), joined(after)) <= 3e-2
    same(before, after, 4e-2)  # both steps round each gradient in their own way, and so do processors: the two errors add up


@pytest.mark.parametrize("family", FAMILIES)
def test_in_16_bit_every_gradient_is_near_to_the_exact_one(family):
    model, rows = adapted("bfloat16", family), documents()
    exact = learned(copy.deepcopy(model).float(), Collate(0)(rows))
    stock_and_fast(model, rows)
    same(exact, learned(model, lay(rows)), 3e-2)


def widened(model, wanted=lambda name: True):
    """`model` with those adapters in 32 bits whose name is `wanted`."""
    for name, weight in model.named_parameters():
        if "lora_" in name and wanted(name):
            weight.data = weight.data.float()
    return model


@pytest.mark.parametrize("wanted", ["lora_", "lora_B", "k_proj"])
def test_adapters_in_32_bits_over_16_learn_in_32_bits_whichever_they_are(wanted):
    model, rows = widened(adapted("bfloat16"), lambda name: wanted in name), documents()
    exact = learned(copy.deepcopy(model).float(), Collate(0)(rows))
    Fast.over(model)
    found = learned(model, lay(rows))
    same(exact, found, 3e-2)
    assert all(grad.dtype == (torch.float32 if wanted in name else torch.bfloat16) for name, grad in found[1].items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wide", [torch.float32, torch.bfloat16])
def test_sums_over_tokens_are_scaled(wide, dtype):
    left, right = (torch.randn(50, columns).to(dtype) for columns in (6, 9))
    out, exact = torch.empty(6, 9, dtype=wide), 0.3 * left.double().t() @ right.double()
    ops.outer(left, right, out, 0.3)
    assert error(exact, out) < (1e-6 if wide == dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_16_bit_it_is_nearer_to_exact_gradients_than_transformers_is(family):
    model, rows = adapted("bfloat16", family), documents()
    exact = learned(copy.deepcopy(model).float(), Collate(0)(rows))
    before, _ = stock_and_fast(model, rows)
    assert mean_error(exact, learned(model, lay(rows))) < mean_error(exact, before)
