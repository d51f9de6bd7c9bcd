"""Products with the activation inside of them, written out on the CPU: a model whose gate and up lie in turn learns what any other does."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from test_fast_step import LENGTHS, adapted, choice, documents, learned, same

from tunestation.training.batches import Collate, lay
from tunestation.training.fast import gated, hopper, ops
from tunestation.training.fast.float8 import quantise_base
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
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_it_learns_what_transformers_and_peft_learn(family, keep, monkeypatch):
    model = adapted("float32", family)
    before = learned(model, Collate(0)(documents()))
    assert paired(over(model, monkeypatch, True, keep)) == [True] * 3
    same(before, learned(model, lay(documents())), 1e-5)


@pytest.mark.parametrize("dense", [0, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("base", ["float32", "bfloat16", "nf4"])
def test_gate_and_up_in_turn_change_what_is_learned_by_no_more_than_rounding(base, dropout, dense, monkeypatch):
    found = []
    for inside in (False, True):
        model = adapted(base, dropout=dropout).train()
        assert paired(over(model, monkeypatch, inside, dense=dense)) == [inside] * 3
        torch.manual_seed(5)
        found.append(learned(model, lay(documents())))
    same(*found, 1e-5 if base == "float32" else 1e-2)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("targets", [["gate_proj", "q_proj"], ["up_proj", "down_proj"], ["o_proj"]])
def test_with_adapters_on_some_layers_alone_too(targets, dropout, monkeypatch):
    found = [] if dropout else [learned(adapted("float32", targets=targets), Collate(0)(documents()))]
    for inside in (False, True):
        model = adapted("float32", dropout=dropout, targets=targets).train()
        assert paired(over(model, monkeypatch, inside)) == [inside] * 3
        torch.manual_seed(5)
        found.append(learned(model, lay(documents())))
    for each in found[1:]:
        same(found[0], each, 1e-5)


def test_what_is_kept_changes_no_bit_of_the_loss(monkeypatch):
    losses = set()
    for keep in EVERY:
        model = adapted("bfloat16", dropout=0.2).train()
        over(model, monkeypatch, True, keep)
        torch.manual_seed(5)
        losses.add(learned(model, lay(documents()))[0])
    assert len(losses) == 1


@pytest.mark.parametrize(
    ("family", "changes"),
    [("phi3", {}), ("gemma", {}), ("llama", {"mlp_bias": True}), ("llama", {"rank": 4}), ("llama", {"intermediate_size": 196})],
)
def test_it_stays_outside_where_gate_and_up_are_packed_or_biased_silu_is_not_what_follows_or_rows_begin_anywhere(
    family, changes, monkeypatch
):
    model = adapted("float32", family, **changes)
    before = learned(model, Collate(0)(documents()))
    assert paired(over(model, monkeypatch, True)) == [False] * 3
    same(before, learned(model, lay(documents())), 1e-5)


def test_an_8_bit_base_stays_outside_too(monkeypatch):
    model = adapted("bfloat16")
    quantise_base(model, torch.device("cpu"))
    assert paired(over(model, monkeypatch, True)) == [False] * 3


def test_a_cpu_and_other_formats_have_no_kernels_for_it():
    assert not gated.known(torch.device("cpu"), torch.bfloat16)
    assert not gated.known(torch.device("cuda", 0), torch.float32)


@pytest.fixture
def on_hopper(monkeypatch):
    """Asks as on a Hopper GPU with QuACK, whose kernels are those that it is given."""

    def ask(agree) -> bool:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
        monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
        monkeypatch.setattr(hopper, "installed", lambda package: package == "quack-kernels")
        monkeypatch.setattr(gated, "_kernels", lambda: SimpleNamespace(agree=agree))
        return gated.known.__wrapped__(torch.device("cuda", 0), torch.bfloat16)

    return ask


def test_before_kernels_are_tried_it_is_said_once_that_this_may_take_its_time(on_hopper, capsys):
    hopper._announce.cache_clear()
    said = []
    assert on_hopper(lambda _device: said.append(capsys.readouterr().out) or True)
    assert len(said) == 1 and "the first time on a machine they are compiled" in said[0]
    assert on_hopper(lambda _device: True)
    assert capsys.readouterr().out == ""


def test_kernels_that_give_other_results_or_do_not_run_are_left_and_that_is_said(on_hopper, capsys):
    assert not on_hopper(lambda _device: False)
    assert "give other results here; the activation takes a pass of its own" in capsys.readouterr().out

    def broken(_device):
        raise TypeError("unexpected keyword\nin line 3")

    assert not on_hopper(broken)
    assert "do not run here (TypeError: unexpected keyword); the activation" in capsys.readouterr().out


def test_without_quack_nothing_is_tried_nor_said(on_hopper, monkeypatch, capsys):
    on_hopper(None)
    capsys.readouterr()
    monkeypatch.setattr(hopper, "installed", lambda _package: False)
    assert not gated.known.__wrapped__(torch.device("cuda", 0), torch.bfloat16)
    assert capsys.readouterr().out == ""


def test_kernels_are_asked_of_the_device_of_steps_where_the_model_is_still_elsewhere(monkeypatch):
    asked = []
    monkeypatch.setattr(gated, "known", lambda device, dtype: bool(asked.append((device, dtype))))
    Fast.over(adapted("bfloat16"), device=torch.device("meta"))
    assert asked == [(torch.device("meta"), torch.bfloat16)]


def test_the_products_are_those_of_gate_and_up_one_behind_the_other():
    torch.manual_seed(0)
    x, weight, back = torch.randn(sum(LENGTHS), 24), torch.randn(2, 24, 40), torch.randn(24, 40)
    gate_up, out = torch.empty(len(x), 80), torch.empty(len(x), 40)
    gated.product(x, weight.permute(1, 2, 0).flatten(1), gate_up, out)
    behind, wanted = x @ torch.cat([*weight], 1), torch.empty_like(out)
    ops.glu(behind, wanted, gelu=False)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(gate_up.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1), behind)
    for added in (None, torch.randn_like(out)):
        grad, result, grads = x @ back, torch.empty_like(out), torch.empty_like(behind)
        ops.glu_backward(behind, grad if added is None else grad + added, grads, gelu=False)
        there = gate_up.clone()
        gated.backward(x, back, there, there, result, added)
        torch.testing.assert_close(result, wanted)
        torch.testing.assert_close(there.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1), grads)
