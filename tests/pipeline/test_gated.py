"""Products with the activation inside of them, written out on the CPU: a model whose gate and up lie in turn learns what any other does."""

import pytest
import torch
from test_fast_step import LENGTHS, adapted, choice, documents, learned, same

from tunestation.training.batches import Collate, lay
from tunestation.training.fast import gated, ops
from tunestation.training.fast.kept import Keep
from tunestation.training.fast.model import Fast

EVERY = [Keep.MORE, Keep.ALL, Keep.ATTENTION, Keep.INPUT]


def over(model, monkeypatch, inside, keep=Keep.ALL, dense=0):
    """The fast step of `model`, its activations inside of products or after them."""
    monkeypatch.setattr(gated, "known", lambda _device, _dtype: inside)
    fast = Fast.over(model)
    fast.keep(choice([keep] * 3, dense))
    return fast


def paired(fast):
    """Whether gate and up lie in turn, in each layer."""
    return [layer.gate_up.paired for layer in fast.layers]


@pytest.mark.parametrize("keep", EVERY)
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_it_learns_what_transformers_and_peft_learn(family, keep, monkeypatch):
    model = adapted("float32", family)
    before = learned(model, Collate(0)(documents()))
    assert paired(over(model, monkeypatch, True, keep)) == [True] * 3
    same(before, learned(model, lay(documents())), 1e-5)


@pytest.mark.parametrize("dense", [0, 2])
@pytest.mark.parametrize("base", ["float32", "bfloat16", "nf4"])
def test_gate_and_up_in_turn_change_what_is_learned_by_no_more_than_rounding(base, dense, monkeypatch):
    found = []
    for inside in (False, True):
        model = adapted(base, dropout=0.2).train()
        over(model, monkeypatch, inside, dense=dense)
        torch.manual_seed(5)
        found.append(learned(model, lay(documents())))
    same(*found, 1e-5 if base == "float32" else 1e-2)


@pytest.mark.parametrize("targets", [["gate_proj", "q_proj"], ["up_proj", "down_proj"], ["o_proj"]])
def test_with_adapters_on_some_layers_alone_too(targets, monkeypatch):
    model = adapted("float32", targets=targets)
    before = learned(model, Collate(0)(documents()))
    over(model, monkeypatch, True)
    same(before, learned(model, lay(documents())), 1e-5)


def test_what_is_kept_changes_no_bit_of_the_loss(monkeypatch):
    losses = set()
    for keep in EVERY:
        model = adapted("bfloat16", dropout=0.2).train()
        over(model, monkeypatch, True, keep)
        torch.manual_seed(5)
        losses.add(learned(model, lay(documents()))[0])
    assert len(losses) == 1


@pytest.mark.parametrize(
    ("family", "changes"), [("phi3", {}), ("llama", {"mlp_bias": True}), ("llama", {"rank": 4}), ("llama", {"intermediate_size": 196})]
)
def test_it_stays_outside_where_gate_and_up_are_packed_or_biased_or_rows_begin_anywhere(family, changes, monkeypatch):
    model = adapted("float32", family, **changes)
    before = learned(model, Collate(0)(documents()))
    assert paired(over(model, monkeypatch, True)) == [False] * 3
    same(before, learned(model, lay(documents())), 1e-5)


def test_a_cpu_has_no_kernels_for_it():
    assert not gated.known(torch.device("cpu"), torch.bfloat16)


@pytest.mark.parametrize("gelu", [False, True])
def test_the_products_are_those_of_gate_and_up_one_behind_the_other(gelu):
    torch.manual_seed(0)
    x, weight, back = torch.randn(sum(LENGTHS), 24), torch.randn(2, 24, 40), torch.randn(24, 40)
    gate_up, out = torch.empty(len(x), 80), torch.empty(len(x), 40)
    gated.product(x, weight.permute(1, 2, 0).flatten(1), gate_up, out, gelu)
    behind, wanted = x @ torch.cat([*weight], 1), torch.empty_like(out)
    ops.glu(behind, wanted, gelu)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(gate_up.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1), behind)
    result, grads = torch.empty_like(out), torch.empty_like(behind)
    ops.glu_backward(behind, x @ back, grads, gelu)
    gated.backward(x, back, gate_up, gate_up, gelu, result)
    torch.testing.assert_close(result, wanted)
    torch.testing.assert_close(gate_up.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1), grads)
