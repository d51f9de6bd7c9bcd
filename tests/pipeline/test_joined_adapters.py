"""Adapters that learn as one weight a layer: the same gradients, the same training, and saved as if they were apart."""

from dataclasses import replace

import pytest
import station as station_module
import torch
from apart import apart
from peft import get_peft_model_state_dict
from safetensors.torch import load
from station import history, last_checkpoint, recipe, record, sums, weights
from test_fast_step import adapted, documents, equal, learned

from tunestation.errors import TunestationError
from tunestation.training.batches import lay
from tunestation.training.checkpoints import stamp_of
from tunestation.training.fast.adapters import joined
from tunestation.training.fast.host import _frozen
from tunestation.training.fast.model import Fast

quick = station_module.quick
SOME = ["q_proj", "v_proj", "up_proj"]


def scaled(model, scales):
    """`model` with adapters of these scales in turn."""
    adapters = [module for module in model.modules() if hasattr(module, "lora_A")]
    for index, module in enumerate(adapters):
        module.scaling["default"] = scales[index % len(scales)]
    return model


@pytest.mark.parametrize("scales", [(1.5,), (0.5, 2.0)], ids=["one scale", "two scales"])
@pytest.mark.parametrize("targets", ["all-linear", SOME], ids=["all layers", "some layers"])
@pytest.mark.parametrize("base", ["float32", "bfloat16", "nf4"])
def test_gradients_are_the_same_to_the_bit(base, targets, scales):
    batch, separate = lay(documents()), scaled(adapted(base, targets=targets, dropout=0.1), scales)
    Fast.over(separate)
    together = scaled(adapted(base, targets=targets, dropout=0.1), scales)
    fast = Fast.over(together)
    fast.join()
    found = []
    for model in (separate, together):
        torch.manual_seed(3)
        found.append(learned(model.train(), batch))
    assert joined(together) and not joined(separate)
    assert len(found[1][1]) == len(fast.layers)
    equal([found[0]], [apart(fast, found[1])])
    assert found[0][1].keys() == apart(fast, found[1])[1].keys()


def test_what_an_optimizer_does_to_the_one_weight_is_saved_as_adapters_apart():
    model = adapted("nf4")
    fast = Fast.over(model)
    before = get_peft_model_state_dict(model)
    fast.join()
    after = get_peft_model_state_dict(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert sum(weight.numel() for weight in model.parameters() if weight.requires_grad) == sum(map(torch.numel, before.values()))
    for layer in fast.layers:
        layer.joined.weight.data.add_(1.0)
    changed = get_peft_model_state_dict(model)
    assert all(torch.equal(changed[name], before[name] + 1) for name in before)


def test_adapters_that_were_converted_and_moved_are_saved_as_they_are_now():
    """DeepSpeed converts all weights, each by itself, and lays those that learn elsewhere."""
    model = adapted("float32")
    fast = Fast.over(model)
    fast.join()
    model.to(torch.bfloat16)
    elsewhere = [layer.joined.weight.data.clone() + 1 for layer in fast.layers]
    for layer, flat in zip(fast.layers, elsewhere, strict=True):
        layer.joined.weight.data = flat
    found = get_peft_model_state_dict(model)
    total = sum(value.float().sum() for value in found.values())
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    assert total == pytest.approx(sum(flat.float().sum() for flat in elsewhere).item(), rel=1e-5)
    learned(model, lay(documents()))
    first = fast.layers[0]
    assert first.layout.weights[0].data_ptr() == first.joined.weight.data_ptr()


def test_an_adapter_that_is_loaded_arrives_in_the_one_weight():
    model, other = adapted("float32"), adapted("float32")
    fast = Fast.over(model)
    fast.join()
    model.to(torch.bfloat16)
    wanted = {name: value + 1 for name, value in get_peft_model_state_dict(other).items()}
    model.load_state_dict({name.replace(".weight", ".default.weight"): value for name, value in wanted.items()}, strict=False)
    found = get_peft_model_state_dict(model)
    assert all(torch.equal(found[name], value.bfloat16()) for name, value in wanted.items())
    assert fast.layers[0].joined.weight[0] == fast.layers[0].layout.weights[0][0, 0]


def test_adapters_of_several_kinds_stay_apart():
    model = adapted("float32")
    one = next(weight for name, weight in model.named_parameters() if "layers.1." in name and "lora_A" in name)
    one.data = one.data.bfloat16()
    fast = Fast.over(model)
    fast.join()
    assert [layer.joined is None for layer in fast.layers] == [False, True, False]


def test_joined_adapters_do_not_wait_in_host_memory_with_frozen_weights():
    model = adapted("nf4")
    fast = Fast.over(model)
    layer = fast.model.model.layers[0]
    before = len(_frozen(layer))
    fast.join()
    assert len(_frozen(layer)) == before > 0


@pytest.fixture
def as_(monkeypatch):
    """Let `train` run as one of the functions of `joining`."""

    def put(name):
        def start(stage, job, *rest):
            return quick(stage, replace(job, function=f"joining:{name}") if stage.name == "train" and name else job, *rest)

        monkeypatch.setattr(station_module, "quick", start)

    return put


def unclipped(name, **runtime):
    """A recipe in which no norm is taken: its sum would have another order."""
    return recipe(name=name, train={**recipe()["train"], "max_grad_norm": 1000.0}, runtime=runtime)


@pytest.mark.parametrize(("stage", "processes"), [(0, 1), (1, 1), (2, 1), (2, 2)])
def test_training_learns_the_same_adapter(station, as_, stage, processes):
    name = f"stage-{stage}"
    station.write(unclipped(name, zero_stage=stage))
    wanted = station.make("train", name=name, force=True, processes=processes)
    mine, losses, samples = load(weights(wanted)), history(wanted, "loss"), record(wanted)["observed"]["samples"]
    kinds = [stamp_of(last_checkpoint(wanted)).joined]
    as_("run")
    found = station.make("train", name=name, force=True, processes=processes)
    yours = load(weights(found))
    assert mine.keys() == yours.keys() and all(torch.equal(mine[each], yours[each]) for each in mine)
    assert history(found, "loss") == losses
    assert record(found)["observed"]["samples"] == samples
    assert [*kinds, stamp_of(last_checkpoint(found)).joined] == [False, True]


def test_training_that_was_stopped_goes_on_to_the_same_bytes(station, as_):
    for name in ("whole", "parted"):
        station.write(recipe(name=name))
    as_("run")
    wanted = station.make("train", name="whole")
    as_("stop")
    with pytest.raises(TunestationError, match="stopped at step 1 of"):
        station.make("train", name="parted")
    as_("run")
    assert sums(station.make("train", name="parted")) == sums(wanted)


@pytest.mark.parametrize("first", ["stop", "alone"])
def test_a_checkpoint_of_the_other_kind_is_refused(station, as_, first):
    """Its optimizer's states lie in another order, which nothing else would notice."""
    station.write(recipe(name=first))
    as_(first)
    with pytest.raises(TunestationError, match="stopped at step 1 of"):
        station.make("train", name=first)
    as_("" if first == "stop" else "run")
    with pytest.raises(TunestationError, match=r"1 with 1 process.*ZeRO-2.*one weight a layer.*start over with --force"):
        station.make("train", name=first)
