"""The merged folder: base and adapter in one, as plain transformers loads it."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from station import recipe
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tunestation.errors import TunestationError
from tunestation.pipeline.job import Job
from tunestation.stages.merge import run

TALK = [{"role": "user", "content": "What is 1 and 1?"}]


@pytest.fixture(scope="module")
def merged(station):
    return station.make("merge")


def load(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@torch.no_grad()
def logits(model):
    ids = torch.arange(3, 103).reshape(2, 50)
    return model(input_ids=ids, use_cache=False).logits.float()


def adapted(station, dtype, name="tiny", model="tiny"):
    base = load(station.model.with_name(model), dtype)
    return PeftModel.from_pretrained(base, station.make("convert", name=name)).eval()


def test_in_float32_it_is_base_and_adapter_together(station):
    folder = station.make("merge", "export.dtype=float32")
    together = logits(adapted(station, torch.float32))
    found = logits(load(folder))
    assert (found - together).abs().max() < 1e-3 * together.abs().max()
    assert (logits(load(station.model)) - together).abs().max() > 0.1 * together.abs().max()


def test_in_bfloat16_its_weights_are_those_in_float32_rounded_once(station, merged):
    exact = adapted(station, torch.float32)
    # the base was stored in float32 and is read in bfloat16, as for training
    for module in exact.modules():
        if hasattr(module, "base_layer"):
            module.base_layer.weight.data = module.base_layer.weight.data.bfloat16().float()
    wanted = exact.merge_and_unload().state_dict()
    found = load_file(merged / "model.safetensors")
    adapters = [name for name in found if "_proj" in name]
    assert len(adapters) == 14
    assert all(torch.equal(found[name], wanted[name].bfloat16()) for name in adapters)


def test_it_equals_what_peft_merges_within_one_rounding(station, merged):
    wanted = adapted(station, torch.bfloat16).merge_and_unload().state_dict()
    found = load_file(merged / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[name].float(), wanted[name].float(), rtol=2**-7, atol=2**-10) for name in found)


def test_it_carries_tokenizer_template_and_generation_settings(station, merged):
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (merged, station.model, station.make("prepare") / "tokenizer")]
    texts = [tokenizer.apply_chat_template(TALK, add_generation_prompt=True, tokenize=False) for tokenizer in tokenizers]
    ids = [tokenizer(text).input_ids for tokenizer, text in zip(tokenizers, texts, strict=True)]
    assert ids[0] == ids[1] == ids[2]
    assert len(ids[0]) > 10
    drawn = GenerationConfig.from_pretrained(merged)
    assert (drawn.do_sample, drawn.temperature, drawn.top_p, drawn.top_k, drawn.max_new_tokens) == (True, 0.1, 0.75, 40, 512)
    assert drawn.eos_token_id == tokenizers[0].eos_token_id
    assert AutoConfig.from_pretrained(merged).use_cache


def test_it_tells_nothing_of_this_machine(station, merged):
    for path in merged.rglob("*"):
        if path.is_file() and path.name != "stage.json":
            assert str(station.root).encode() not in path.read_bytes(), path.name


def test_a_small_shard_size_makes_shards_with_an_index(station, merged):
    folder = station.make("merge", "export.shard_size=0.1MB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert sorted(set(index.values())) == shards
    assert torch.equal(logits(load(folder)), logits(load(merged)))


@pytest.fixture(scope="module")
def tied(station):
    """A recipe over a model whose head is its embedding."""
    folder = station.model.with_name("tied")
    config = AutoConfig.from_pretrained(station.model, tie_word_embeddings=True)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(station.model).save_pretrained(folder)
    quiet = {"every_steps": 1000, "prompts": []}
    station.write(recipe(name="tied", model={"source": {"kind": "folder", "path": "tied"}}, evaluate=quiet))
    return "tied"


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_tied_weights_stay_tied(station, tied, method):
    folder = station.make("merge", "export.dtype=float32", f"train.method={method}", name=tied)
    model = load(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    if method == "qlora":
        together = logits(adapted(station, torch.float32, name=tied, model="tied"))
        assert (logits(model) - together).abs().max() < 1e-3 * together.abs().max()


def lacking_one(converted, folder):
    """A copy of a conversion without its last tensor; returns that tensor's name."""
    folder.mkdir()
    for path in converted.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (file,) = folder.glob("*model.safetensors")
    tensors = load_file(file)
    name = "model.norm.weight" if "model.norm.weight" in tensors else max(tensors)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("assignments", [(), ("train.method=full", "evaluate.every_steps=1000", "evaluate.prompts=[]")])
def test_a_weight_that_is_missing_is_not_made_up(station, merged, tmp_path, assignments):
    shelf = station.open().shelf
    name = lacking_one(station.make("convert", *assignments), tmp_path / "lacking")
    needs = {"fetch": station.make("fetch"), "prepare": station.make("prepare"), "convert": tmp_path / "lacking"}
    job = Job("merge", "", {}, needs, tmp_path / "out", shelf.volumes, {})
    with pytest.raises(TunestationError, match=f"1 weights are missing, first {name}"):
        run({"dtype": "bfloat16", "shard_size": "2GB", "generation": {}}, job)
