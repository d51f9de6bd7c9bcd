"""Weights out of the shards that a training under DeepSpeed really left, against those that it saved beside them."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from station import last_checkpoint
from test_distributed import pair

from tunestation.stages.convert import weights_of


def without_weights(checkpoint, folder):
    """A copy that holds the shards, but not the weights that were gathered."""
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.mark.parametrize(
    ("name", "stage", "processes"),
    [("zero-1-together", 1, 2), ("alone", 2, 1), ("together", 2, 2), ("zero-3-alone", 3, 1), ("zero-3-together", 3, 2)],
)
def test_the_shards_of_any_stage_hold_the_adapter_that_was_saved(station, tmp_path, name, stage, processes):
    changes = {} if stage == 2 else {"runtime": {"zero_stage": stage}}
    trained = station.make("train", name=pair(station, name, **changes), processes=processes)
    saved = load_file(last_checkpoint(trained) / "adapter_model.safetensors")
    found = {one.name: one.load() for one in weights_of(without_weights(last_checkpoint(trained), tmp_path / "shards"), adapter=True)}
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name].bfloat16()) for name in saved)
    assert any(weight.abs().max() > 0 for name, weight in saved.items() if "lora_B" in name)


def test_the_shards_of_a_full_training_hold_every_weight(station, tmp_path):
    quiet = {"runtime": {"zero_stage": 3}}
    trained = station.make("train", name=pair(station, "zero-3-full", train={"method": "full"}, **quiet))
    saved = load_file(last_checkpoint(trained) / "model.safetensors")
    found = {one.name: one.load() for one in weights_of(without_weights(last_checkpoint(trained), tmp_path / "shards"), adapter=False)}
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)
