"""A recipe begins with an adapter that was trained before: it is merged as it is, or learns on."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from station import Station, last_checkpoint, recipe, record
from test_export_merging import KINDS, make_adapter
from transformers import AutoModelForCausalLM

from tunestation import closing
from tunestation.errors import InputError

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A workspace whose recipe names an adapter of its model."""
    place = Station(tmp_path_factory.mktemp("given"))
    make_adapter(place.model, place.model.parent / "adapters" / "coach", **KINDS["LoRA"])
    place.write(recipe(model={"adapter": "adapters/coach"}))
    return place


def adapter_of(place):
    return load_file(place.model.parent / "adapters" / "coach" / WEIGHTS)


@pytest.mark.filterwarnings("ignore")
def test_with_no_epochs_it_is_merged_as_it_is_and_proved(begun):
    folder = begun.make("merge", "train.epochs=0")
    assert record(folder)["metrics"]["merged_kl"] < 0.01 < record(folder)["metrics"]["base_kl"]
    converted = load_file(begun.make("convert", "train.epochs=0") / WEIGHTS)
    given = adapter_of(begun)
    assert converted.keys() == given.keys() and all(torch.equal(converted[name], given[name]) for name in given)
    base = AutoModelForCausalLM.from_pretrained(begun.model, dtype=torch.float32)
    wanted = PeftModel.from_pretrained(base, begun.model.parent / "adapters" / "coach").merge_and_unload().state_dict()
    for name, weight in load_file(folder / "model.safetensors").items():
        assert torch.allclose(weight.float(), wanted[name], rtol=2**-8, atol=1e-6), name
    with begun.here():
        assert "Nothing was trained: train.epochs is 0." in closing.results(begun.open("train.epochs=0"))


def test_training_goes_on_from_it(begun):
    still = load_file(last_checkpoint(begun.make("train", "train.learning_rate=1e-9", "train.epochs=1")) / WEIGHTS)
    moved = load_file(last_checkpoint(begun.make("train", "train.learning_rate=1e-2", "train.epochs=1")) / WEIGHTS)
    given = adapter_of(begun)
    assert still.keys() == moved.keys() == given.keys()
    assert all(torch.allclose(still[name].float(), given[name].float(), rtol=2**-7, atol=1e-5) for name in given)
    assert not any(torch.allclose(moved[name].float(), given[name].float(), atol=1e-3) for name in given)


def test_the_magnitudes_of_a_dora_learn_too(begun):
    """The fast step knows A and B alone."""
    make_adapter(begun.model, begun.model.parent / "adapters" / "dora", **KINDS["DoRA"])
    made = begun.make("train", "model.adapter=adapters/dora", "train.learning_rate=1e-2", "train.epochs=1")
    moved, given = load_file(last_checkpoint(made) / WEIGHTS), load_file(begun.model.parent / "adapters" / "dora" / WEIGHTS)
    magnitudes = [name for name in given if "magnitude" in name]
    assert magnitudes and moved.keys() == given.keys()
    assert not any(torch.equal(moved[name].float(), given[name].bfloat16().float()) for name in magnitudes)
    assert "lora_magnitude_vector.default.weight learns" in record(made)["observed"]["step"]


def test_other_bytes_of_it_are_another_training(begun):
    before = [stage.params for stage in begun.open().stages]
    path = begun.model.parent / "adapters" / "coach" / WEIGHTS
    kept = path.read_bytes()
    save_file({name: weight * 2 for name, weight in load_file(path).items()}, path, metadata={"format": "pt"})
    changed = [stage.name for stage, params in zip(begun.open().stages, before, strict=True) if stage.params != params]
    path.write_bytes(kept)
    assert changed == ["train"]


@pytest.mark.parametrize("epochs", [0, 1])
def test_an_adapter_of_another_model_is_refused_before_anything_is_loaded(begun, epochs):
    folder = begun.model.parent / "adapters" / "other"
    make_adapter(begun.model, folder, **KINDS["LoRA"])
    tensors = load_file(folder / WEIGHTS)
    narrow = {name: weight[:, :16].contiguous() if ".lora_A." in name else weight for name, weight in tensors.items()}
    save_file(narrow, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"the adapter was made for .*, but the base has .*Name the model that it was trained on\."):
        begun.make("train", "model.adapter=adapters/other", f"train.epochs={epochs}")
