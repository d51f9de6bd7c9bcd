"""Adapters that learn as one weight a layer: the same gradients, the same training, and saved as if they were apart."""

import pytest
import torch
from apart import apart
from peft import get_peft_model_state_dict
from safetensors.torch import load
from station import history, last_checkpoint, recipe, record, sums, weights
from test_convert_zero import without_weights
from test_fast_step import adapted, documents, equal, learned
from transformers import TrainerState

from tunestation.errors import TunestationError
from tunestation.stages.convert import weights_of
from tunestation.training.batches import lay
from tunestation.training.checkpoints import stamp_of
from tunestation.training.fast.adapters import joined
from tunestation.training.fast.host import _frozen
from tunestation.training.fast.model import Fast
from tunestation.training.learned import learned as learned_bytes
from tunestation.training.rehearsal import Rehearsal

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


def moved():
    """A model whose joined weights were converted and laid elsewhere, each by itself, as DeepSpeed does it; and one that is so from
    the start."""
    model, wanted = adapted("bfloat16"), adapted("bfloat16")
    fast = Fast.over(model)
    fast.join()
    for each in (model, wanted):
        each.to(torch.float32).to(torch.bfloat16)
    for layer in fast.layers:
        layer.joined.weight.data = layer.joined.weight.data.clone() * 2
    for name, weight in wanted.named_parameters():
        if "lora_" in name:
            weight.data.mul_(2)
    return model, fast, wanted


def test_adapters_that_were_converted_and_moved_are_saved_as_they_are_now():
    model, _, wanted = moved()
    found, other = get_peft_model_state_dict(model), get_peft_model_state_dict(wanted)
    assert found.keys() == other.keys() and all(torch.equal(found[name], value) for name, value in other.items())


def test_a_micro_batch_takes_adapters_from_where_they_are_now():
    model, fast, wanted = moved()
    Fast.over(wanted)
    batch = lay(documents())
    equal([learned(wanted, batch)], [apart(fast, learned(model, batch))])


def test_memory_is_counted_when_no_copy_of_adapters_is_left(tmp_path):
    model, fast, _ = moved()
    rehearsal = Rehearsal(model, fast, lay, documents(), None, tmp_path, 1, 0, learned_bytes("adamw", 2), None, print, print, str)

    def free():
        assert all(layer.layout.weights[0].data_ptr() == layer.joined.weight.data_ptr() for layer in fast.layers)
        raise KeyboardInterrupt

    rehearsal.free = free
    with pytest.raises(KeyboardInterrupt):
        rehearsal.on_train_begin(None, TrainerState(), None)


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


def unclipped(name, **runtime):
    """A recipe in which nothing is clipped: the norm is summed in another order."""
    return recipe(name=name, train={**recipe()["train"], "max_grad_norm": 1000.0}, runtime=runtime)


@pytest.mark.parametrize(("stage", "processes"), [(0, 1), (1, 1), (2, 1), (2, 2)])
def test_training_learns_the_same_adapter(station, train_as, stage, processes):
    name = f"joined-{stage}-{processes}"
    station.write(unclipped(name, zero_stage=stage))
    wanted = station.make("train", name=name, force=True, processes=processes)
    mine, losses, samples = load(weights(wanted)), history(wanted, "loss"), record(wanted)["observed"]["samples"]
    kinds = [stamp_of(last_checkpoint(wanted)).joined]
    train_as("joining:run")
    found = station.make("train", name=name, force=True, processes=processes)
    yours = load(weights(found))
    assert mine.keys() == yours.keys() and all(torch.equal(mine[each], yours[each]) for each in mine)
    assert history(found, "loss") == losses
    assert record(found)["observed"]["samples"] == samples
    assert [*kinds, stamp_of(last_checkpoint(found)).joined] == [False, True]


def test_training_that_was_stopped_goes_on_to_the_same_bytes(station, train_as):
    for name in ("joined-whole", "joined-parted"):
        station.write(recipe(name=name))
    train_as("joining:run")
    wanted = station.make("train", name="joined-whole")
    train_as("joining:stop")
    with pytest.raises(TunestationError, match="stopped at step 1 of"):
        station.make("train", name="joined-parted")
    train_as("joining:run")
    assert sums(station.make("train", name="joined-parted")) == sums(wanted)


@pytest.mark.parametrize("first", ["stop", "alone"])
def test_training_goes_on_with_adapters_as_its_checkpoint_has_them(station, train_as, first):
    """As on a CPU what was begun on a GPU, and on a GPU what was begun before adapters were joined there."""
    for name in (f"joined-{first}-whole", f"joined-{first}-parted"):
        station.write(recipe(name=name))
    train_as("joining:run" if first == "stop" else "")
    wanted = station.make("train", name=f"joined-{first}-whole")
    train_as(f"joining:{first}")
    with pytest.raises(TunestationError, match="stopped at step 1 of"):
        station.make("train", name=f"joined-{first}-parted")
    train_as("")
    found = station.make("train", name=f"joined-{first}-parted")
    assert stamp_of(last_checkpoint(found)).joined is (first == "stop")
    assert sums(found) == sums(wanted)


def test_shards_without_the_adapter_beside_them_are_refused(station, train_as, tmp_path):
    station.write(recipe(name="joined-shards"))
    train_as("joining:run")
    checkpoint = last_checkpoint(station.make("train", name="joined-shards"))
    with pytest.raises(TunestationError, match=r"adapter_model.safetensors is missing, and DeepSpeed's shards hold .* as one weight"):
        weights_of(without_weights(checkpoint, tmp_path / "shards"), adapter=True)


def test_a_checkpoint_of_the_other_kind_is_refused(station, train_as):
    """Its optimizer's states lie in another order, which nothing else would notice."""
    station.write(recipe(name="joined-not"))
    train_as("joining:alone")
    with pytest.raises(TunestationError, match="stopped at step 1 of"):
        station.make("train", name="joined-not")
    train_as("joining:run")
    with pytest.raises(TunestationError, match=r"1 with 1 process.*ZeRO-2;.*, adapters as one weight a layer\. .*start over with --force"):
        station.make("train", name="joined-not")
