"""The rehearsal before the first step: what it tries, what it says, and that it leaves no trace."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from station import recipe, sums
from test_fast_step import SHAPE, adapted, documents
from transformers import LlamaConfig, LlamaForCausalLM

from tunestation.errors import TunestationError
from tunestation.recipe.schema import Runtime
from tunestation.recipe.train import Train
from tunestation.training import cards, foresight
from tunestation.training.advice import does_not_fit
from tunestation.training.batches import lay
from tunestation.training.fast.model import Fast
from tunestation.training.learned import learned
from tunestation.training.memory import GIB, Shape
from tunestation.training.model import trainable
from tunestation.training.packed import documents as packs
from tunestation.training.packed import pack
from tunestation.training.rehearsal import Rehearsal, advised

CPU = torch.device("cpu")


def over(model, fast, tmp_path, method):
    """A rehearsal of `model`, whose longest micro-batch has 60 tokens."""
    rows, machine = documents(), Runtime().model_dump()
    setup = foresight.setup_of(model, Train(method=method).model_dump(), machine, fast is not None)
    gradients = learned("adamw", 2, weights=trainable(model))
    collate = lay if fast else packs
    found = Rehearsal(model, fast, collate, rows[2:], rows[1], tmp_path, 4, 1000, gradients, setup, model.save_pretrained, list, None)
    found.advice = lambda: foresight.advice(found.setup)
    return found


def of_adapters(tmp_path):
    model = adapted(dropout=0.1).train()
    return over(model, Fast.over(model), tmp_path, "lora")


def of_all_weights(tmp_path):
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).train()
    pack(model)
    return over(model, None, tmp_path, "full")


@pytest.fixture(params=[of_adapters, of_all_weights])
def rehearsal(request, tmp_path):
    return request.param(tmp_path)


def test_it_leaves_weights_gradients_random_numbers_and_files_as_they_were(rehearsal, tmp_path):
    torch.manual_seed(3)
    before, weights = torch.get_rng_state(), {name: weight.clone() for name, weight in rehearsal.model.named_parameters()}
    rehearsal.run(CPU, rehearsal.states)
    rehearsal.try_saving(True)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(weight, weights[name]) and weight.grad is None for name, weight in rehearsal.model.named_parameters())
    assert not any(weight._backward_hooks for weight in rehearsal.model.parameters())
    assert rehearsal.model.training
    assert list(tmp_path.iterdir()) == []


def test_it_tries_the_longest_micro_batch_an_evaluation_and_a_save(rehearsal, monkeypatch):
    seen, forward, save = [], rehearsal.model.forward, rehearsal.save
    monkeypatch.setattr(rehearsal.model, "forward", lambda **batch: seen.append(batch["input_ids"].numel()) or forward(**batch))
    rehearsal.save = lambda folder: seen.append("saved") or save(folder)
    begin(rehearsal)
    assert seen == [60, 19, "saved"]


def begin(rehearsal):
    rehearsal.on_train_begin(SimpleNamespace(device=CPU), SimpleNamespace(global_step=0, is_world_process_zero=True), None)


def test_gradients_take_what_deepspeed_will_take_for_them(rehearsal, monkeypatch):
    taken, empty = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda size, **options: taken.append(size) or empty(size, **options))
    rehearsal.run(CPU, 0)
    count, gradients = trainable(rehearsal.model), rehearsal.gradients
    bytes_ = [size for size in taken if isinstance(size, int)]
    assert sum(bytes_) == pytest.approx((gradients.backward + gradients.step) * count, rel=1e-3)


@pytest.fixture
def small_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, int(23.5 * GIB)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GeForce RTX 4090")


def test_a_micro_batch_that_does_not_fit_is_told_with_what_would(rehearsal, monkeypatch, small_card):
    def full(**_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rehearsal.model, "forward", full)
    seven_b = Shape(4096, 14336, 32, 32, 8, 128, 92544, False, 64)
    rehearsal.setup = replace(rehearsal.setup, shape=seven_b, micro=8)
    with pytest.raises(TunestationError, match=r"60 tokens does not fit into this GPU's 23.5 GiB. What should fit:") as caught:
        begin(rehearsal)
    assert "--set " in str(caught.value) and "of 23.5 GiB" in str(caught.value)
    assert caught.value.exit_code == 1


def test_too_small_a_disk_is_told(rehearsal, monkeypatch):
    usage = shutil.disk_usage(rehearsal.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000))
    with pytest.raises(TunestationError, match=r"4 checkpoints need 0.0 GB, and 0.0 GB are free") as caught:
        rehearsal.check_disk()
    assert "lower train.keep" in str(caught.value)


def test_running_out_of_memory_later_is_told_in_the_same_words(small_card):
    told = r"4,096 tokens does not fit into this GPU's 23.5 GiB. Do this."
    with pytest.raises(TunestationError, match=told), advised(4096, lambda: "Do this."):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_an_architecture_that_plans_know_nothing_of_gets_general_advice():
    lines = f"{does_not_fit(16_777_216, 139.8)} {foresight.advice(None)}".split("\n")
    assert "runtime.micro_batch_size" in lines[1] and max(map(len, lines)) <= 100


@pytest.mark.parametrize(("stage", "processes"), [(0, 1), (2, 1), (3, 1), (3, 2)])
def test_training_all_weights_learns_the_same_bytes_with_and_without_it(station, train_as, stage, processes):
    train, name = {"method": "full", "learning_rate": 1e-3, "epochs": 0.5}, f"rehearsed-{stage}-{processes}"
    station.write(recipe(name=name, train=recipe()["train"] | train, runtime={"zero_stage": stage}))
    rehearsed = sums(station.make("train", name=name, processes=processes))
    train_as("unrehearsed:run")
    assert sums(station.make("train", name=name, processes=processes, force=True)) == rehearsed


def test_what_is_planned_is_of_the_longest_row_on_this_card_and_nothing_on_one_that_is_not_known(tmp_path, monkeypatch):
    found, data = of_adapters(tmp_path), Dataset.from_list(documents())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(foresight, "_card", lambda: None)
    assert foresight.planned(found.setup, found.fast, data) == {}
    speeds = []
    for rate in (0.001, 0.002):  # so slow that products set the pace of a model as small as this
        monkeypatch.setattr(foresight, "_card", lambda rate=rate: replace(cards.CARDS["h200"], rate=rate))
        planned = foresight.planned(found.setup, found.fast, data)["planned"]
        longest = max(map(len, data["input_ids"]))
        parts = found.setup.components(found.fast.choice, longest)
        assert planned["peak_memory_gb"] == round(sum(parts.values()) / 1e9, 2) > 0
        speeds.append(planned["tokens_per_second"])
    assert 0 < speeds[0] < speeds[1]
