"""Picking a checkpoint and writing a clean adapter from it, or refusing to."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from station import last_checkpoint, record

from tunestation.errors import TunestationError
from tunestation.fetching.manifest import FetchedModel
from tunestation.pipeline.job import Job
from tunestation.stages.convert import clean_config, pick, run, weights_of
from tunestation.training.checkpoints import Stamp, prune, seal


@pytest.fixture(scope="module")
def converted(station):
    return station.make("convert")


def test_the_adapter_has_the_weights_of_the_last_checkpoint(trained, converted):
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (last_checkpoint(trained), converted))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert record(converted)["facts"] == {"checkpoint": "checkpoint-11", "tensors": 28, "weights": 8192, "adapter": True}


def test_the_configuration_of_the_adapter_names_its_base_and_lists_in_one_order(converted):
    config = json.loads((converted / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"], config["inference_mode"]) == ("models:tiny", None, True)
    assert len(config["target_modules"]) == 14
    assert config["target_modules"] == sorted(config["target_modules"])
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.1)
    files = {"adapter_config.json", "adapter_model.safetensors", "report.json"}
    assert {path.name for path in converted.iterdir()} == {"SHA256SUMS", "stage.json", *files}


def test_a_report_says_what_the_adapter_holds_and_which_base_it_belongs_to(station, converted):
    found = json.loads((converted / "report.json").read_text())
    manifest = json.loads((station.make("fetch") / "manifest.json").read_text())["model"]
    assert found["base"] == {"name": "models:tiny", "commit": None, "files": manifest["files"]}
    every = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    assert found["adapter"] == {
        "ranks": [4],
        "alpha": 8,
        "kind": "LoRA",
        "dtypes": ["bfloat16"],
        "modules": dict.fromkeys(every, 2),
        "trained_whole": [],
        "asked_for_in_vain": [],
        "norms": False,
        "head": False,
        "embedding": False,
    }


def test_a_base_from_a_hub_is_named_by_repository_and_commit():
    config = clean_config({"target_modules": ["b", "a"]}, FetchedModel("models:hub/x", "owner/x", "c" * 40, {}))
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/x", "c" * 40)
    assert config["target_modules"] == ["a", "b"]


@pytest.mark.parametrize(("which", "chosen"), [("best", "checkpoint-8"), ("last", "checkpoint-11")])
def test_the_last_checkpoint_or_the_one_with_the_lowest_held_out_loss_is_written(station, trained, tmp_path, which, chosen):
    shutil.copytree(trained, tmp_path / "trained")
    stamp = tmp_path / "trained" / "checkpoints" / "checkpoint-8" / "checkpoint.json"
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"held_out_loss": 0.1}))
    needs = {"fetch": station.make("fetch"), "train": tmp_path / "trained"}
    (tmp_path / "out").mkdir()
    facts = run({"checkpoint": which}, Job("convert", "", {}, needs, tmp_path / "out", station.open().shelf.volumes, {})).facts
    assert facts["checkpoint"] == chosen
    wanted = load_file(stamp.parents[1] / chosen / "adapter_model.safetensors")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("which", ["last", "best"])
def test_a_folder_without_a_complete_checkpoint_is_refused(tmp_path, which):
    (tmp_path / "checkpoint-4").mkdir()
    with pytest.raises(TunestationError, match="no complete checkpoint"):
        pick(tmp_path, which)


def test_checkpoints_are_ordered_by_step_and_the_best_survives_newer_ones(tmp_path):
    for step, loss in ((8, 2.0), (9, 1.0), (10, 3.0), (11, None)):
        (tmp_path / ".saving" / f"checkpoint-{step}").mkdir(parents=True)
        seal(tmp_path / ".saving", tmp_path, Stamp(step, 1, 1, 2, loss))
        prune(tmp_path, keep=1, save_steps=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-11", "checkpoint-9"]
    assert pick(tmp_path, "last").name == "checkpoint-11"
    assert pick(tmp_path, "best").name == "checkpoint-9"


def test_a_checkpoint_asked_for_in_between_goes_when_a_newer_one_is_there(tmp_path):
    kept = []
    for step in (10, 20, 23, 30):
        (tmp_path / ".saving" / f"checkpoint-{step}").mkdir(parents=True)
        seal(tmp_path / ".saving", tmp_path, Stamp(step, 1, 1, 2, None))
        prune(tmp_path, keep=2, save_steps=10)
        kept.append(sorted(path.name for path in tmp_path.iterdir()))
    assert kept[2] == ["checkpoint-20", "checkpoint-23"]
    assert kept[3] == ["checkpoint-20", "checkpoint-30"]


def loaded(folder, adapter=False):
    """All weights of a checkpoint."""
    return {one.name: one.load() for one in weights_of(folder, adapter)}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors"])
def test_a_tensor_that_is_not_finite_is_named(tmp_path, name, value):
    save_file({"good": torch.ones(2), "bad": torch.tensor([1.0, value])}, tmp_path / name)
    with pytest.raises(TunestationError, match="the weight bad is empty or not finite"):
        loaded(tmp_path, name.startswith("adapter"))


def test_an_empty_tensor_is_named(tmp_path):
    save_file({"good": torch.ones(2), "bad": torch.ones(0)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(TunestationError, match="the weight bad is empty or not finite"):
        loaded(tmp_path, adapter=True)


@pytest.mark.parametrize("adapter", [True, False])
def test_a_checkpoint_without_weights_is_refused(tmp_path, adapter):
    with pytest.raises(TunestationError, match="holds no weights"):
        loaded(tmp_path, adapter)
    save_file({}, tmp_path / ("adapter_model.safetensors" if adapter else "model.safetensors"))
    with pytest.raises(TunestationError, match="holds no weights"):
        loaded(tmp_path, adapter)


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors"])
def test_a_truncated_file_is_refused(tmp_path, name):
    save_file({"weight": torch.ones(100)}, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    with pytest.raises(TunestationError, match="cannot be read"):
        loaded(tmp_path, name.startswith("adapter"))


def test_a_missing_shard_is_noticed(tmp_path):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.ones(2)}, tmp_path / "model-1.safetensors")
    with pytest.raises(TunestationError, match=r"cannot be read.*model-2.safetensors"):
        loaded(tmp_path)
    save_file({"b": torch.zeros(2)}, tmp_path / "model-2.safetensors")
    assert list(loaded(tmp_path)) == ["a", "b"]
