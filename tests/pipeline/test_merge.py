"""The merged folder: base and adapter in one, as plain transformers loads it."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from station import recipe, record
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tunestation.errors import TunestationError
from tunestation.export.folder import write_tokenizer
from tunestation.pipeline.job import Job
from tunestation.recipe.schema import Generation
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


def test_its_record_proves_that_it_is_base_and_adapter_and_not_the_base(merged):
    found = record(merged)
    assert found["facts"] == {"weights": 135488, "dtype": "bfloat16", "modules_changed": 14}
    assert 0 < found["metrics"]["merged_kl"] < 0.01 < found["metrics"]["base_kl"]
    assert 0 < found["metrics"]["merged_mean"] < found["metrics"]["merged_largest"] < 1
    assert found["metrics"]["merged_same_tokens"] > 0.9 > found["metrics"]["base_same_tokens"]
    nearness = found["observed"]["nearness"]
    assert nearness.keys() == {"16bit", "nf4"}
    assert nearness["nf4"] < nearness["16bit"]  # it was trained on the 4-bit base


def test_after_qlora_the_adapter_can_be_added_to_the_4_bit_base_it_was_trained_on(station, merged):
    found = record(station.make("merge", "export.base=nf4"))
    assert found["observed"]["nearness"] == record(merged)["observed"]["nearness"]
    assert found["metrics"]["merged_kl"] < 0.01


def test_after_8_bits_it_is_measured_which_base_is_nearer_and_they_can_be_merged(station):
    found = record(station.make("merge", "train.base.type=fp8", "export.base=fp8"))
    nearness = found["observed"]["nearness"]
    assert nearness.keys() == {"16bit", "fp8"}
    assert nearness["fp8"] < nearness["16bit"]
    assert found["metrics"]["merged_kl"] < 0.01


def test_a_model_card_says_where_it_comes_from(merged):
    text = (merged / "README.md").read_text()
    for part in ("# tiny", "`models:tiny`, tuned with method `qlora`", "recipe:rows.jsonl", "| LoRA rank | 4 |", "| held out loss |"):
        assert part in text
    assert "beside what was trained" in text and "| peft | 0." in text


def test_it_stops_where_the_base_stops_as_well(station, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "generation_config.json").write_text('{"eos_token_id": [1, 2, 9999]}')
    write_tokenizer(station.make("prepare"), base, Generation().model_dump(), tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [1, 2]


def test_its_tokenizer_is_of_a_class_that_older_servers_know(merged):
    config = json.loads((merged / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert not {"is_local", "local_files_only"} & config.keys()


def test_a_base_that_was_changed_after_training_is_refused(station, tmp_path):
    converted = tmp_path / "converted"
    shutil.copytree(station.make("convert"), converted)
    report = json.loads((converted / "report.json").read_text())
    report["base"]["files"]["config.json"] = "0" * 64
    report["base"]["commit"] = "c" * 40
    (converted / "report.json").write_text(json.dumps(report))
    job = Job("merge", "", {}, {"fetch": station.make("fetch"), "convert": converted}, tmp_path, station.open().shelf.volumes, {})
    with pytest.raises(TunestationError) as told:
        run({"gguf": None}, job)
    assert [str(problem).partition(" Merge with")[0] for problem in told.value.problems] == [
        "models:tiny/config.json: has other bytes than the base that the adapter was trained on.",
        f"models:tiny: is at commit None, but the adapter was trained on {'c' * 40}.",
    ]


def test_a_merged_model_too_far_from_what_was_trained_fails(station):
    with pytest.raises(TunestationError, match=r"not what was trained: KL .* from base \+ adapter, at most 0 is allowed"):
        station.make("merge", "export.max_kl=0")


def job_of(station, out, **needs):
    """(params, job) of the merge of the tiny recipe, with other folders in the place of some that it needs."""
    work = station.open()
    stage = next(stage for stage in work.stages if stage.name == "merge")
    found = {name: station.make(name) for name in stage.needs} | needs
    out.mkdir(exist_ok=True)
    return stage.params, Job("merge", "", stage.params, found, out, work.shelf.volumes, {})


def test_a_merged_model_that_is_still_the_base_is_caught(station, tmp_path):
    converted = tmp_path / "converted"
    shutil.copytree(station.make("convert"), converted)
    tensors = load_file(converted / "adapter_model.safetensors")
    save_file({name: weight * ("lora_A" in name) for name, weight in tensors.items()}, converted / "adapter_model.safetensors")
    with pytest.raises(TunestationError, match=r"is still the untuned base \(KL .*\): the merge, or the training, changed nothing"):
        run(*job_of(station, tmp_path / "out", convert=converted))


def test_an_interrupted_merge_goes_on_from_its_complete_files_only_if_it_is_the_same(station, tmp_path, capsys):
    with pytest.raises(OSError, match="tokenizer"):  # it ends after the weights
        run(*job_of(station, tmp_path / "out", prepare=tmp_path))
    weights = tmp_path / "out" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    run(*job_of(station, tmp_path / "out"))
    assert "going on: 1 weight files are complete" in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == written
    assert not (tmp_path / "out" / "begun.json").exists()
    converted = tmp_path / "converted"
    shutil.copytree(station.make("convert"), converted)
    with pytest.raises(OSError, match="tokenizer"):
        run(*job_of(station, tmp_path / "out", prepare=tmp_path))
    (converted / "adapter_config.json").write_text((converted / "adapter_config.json").read_text() + " ")
    capsys.readouterr()
    run(*job_of(station, tmp_path / "out", convert=converted))
    assert "going on" not in capsys.readouterr().out
    written = weights.stat().st_mtime_ns
    (tmp_path / "out" / "begun.json").write_text("{}")
    run(*job_of(station, tmp_path / "out"))
    assert "going on" not in capsys.readouterr().out
    assert weights.stat().st_mtime_ns != written


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
    needs = {"fetch": station.make("fetch"), "convert": tmp_path / "lacking"}
    job = Job("merge", "", {}, needs, tmp_path / "out", shelf.volumes, {})
    message = "o_proj: lora_B is missing|v_proj: lora_B is missing" if not assignments else f"1 weights are missing, first {name}"
    with pytest.raises(TunestationError, match=message):
        run({"dtype": "bfloat16", "base": "16bit", "trained_base": None, "gguf": None}, job)
