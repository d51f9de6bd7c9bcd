"""Fetching a model that needs its own code: it arrives converted, nothing of it runs, and the record says from what it was made."""

import os
from pathlib import Path

import pytest
import torch
from fake_hub import COMMIT, Repository, running
from fetch_station import Station, error, sha256
from filelock import FileLock
from original_families import internlm, internlm2
from original_packed import qwen
from safetensors.torch import load_file, save_file
from small_vocabularies import SYMBOLS, train_sentencepiece
from tiny import make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tunestation.errors import TunestationError
from tunestation.fetching.conversion import converted
from tunestation.fetching.manifest import FetchedModel
from tunestation.models.folder import model_files
from tunestation.models.native.convert import convert
from tunestation.pipeline.digest import Digests, file_digest
from tunestation.pipeline.files import read_json, write_json
from tunestation.pipeline.volumes import Volumes

LOCAL = {"kind": "folder", "ref": "models:mine"}


@pytest.fixture
def station(tmp_path: Path):
    with running() as hub:
        yield Station(tmp_path, hub)


def trap(folder: Path, mark: Path) -> None:
    """Code that would write a file if anything in the folder were imported, asked for by both configurations."""
    for name in ("modeling_x", "tokenization_x", "configuration_x", "__init__", "setup"):
        (folder / f"{name}.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).write_text('ran')\n")
    config = read_json(folder / "config.json")
    config["auto_map"] = {"AutoConfig": "configuration_x.Config", "AutoModelForCausalLM": "modeling_x.Model"}
    write_json(folder / "config.json", config)
    tokenizer = folder / "tokenizer_config.json"
    known = read_json(tokenizer) if tokenizer.is_file() else {}
    write_json(tokenizer, known | {"auto_map": {"AutoTokenizer": ["tokenization_x.Slow", None]}})


def repository(folder: Path) -> Repository:
    return Repository({path.name: path.read_bytes() for path in folder.iterdir()})


def internlm2_folder(root: Path) -> Path:
    folder = internlm2().write(root / "original")
    train_sentencepiece(folder, SYMBOLS["internlm2"])
    return folder


def load(folder: Path) -> tuple:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def llama(folder: Path) -> LlamaForCausalLM:
    """A native model without weights in `folder` yet; its tokenizer is there."""
    config = LlamaConfig(
        vocab_size=480,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    make_tokenizer().save_pretrained(folder)
    config.save_pretrained(folder)
    return LlamaForCausalLM(config)


@torch.no_grad()
def test_a_repository_in_internlm2_layout_arrives_as_a_llama_and_its_code_did_not_run(station):
    folder, mark = internlm2_folder(station.root), station.root / "ran"
    trap(folder, mark)
    station.hub.models["owner/tiny"] = repository(folder)
    outcome = station.run()
    assert outcome["code"] == 0, outcome
    made = station.manifest()["model"]
    assert made["ref"].startswith("models:converted/owner--tiny-") and (made["repo"], made["commit"]) == ("owner/tiny", COMMIT)
    result = station.root / made["ref"].replace(":", "/")
    assert {name: file_digest(result / name) for name in made["files"]} == made["files"]
    assert outcome["volumes"] == {f"{made['ref']}/{name}": digest for name, digest in made["files"].items()}
    assert made["source"]["family"] == "internlm2" and made["source"]["ref"] == f"models:hub/owner--tiny/{COMMIT}"
    assert made["source"]["files"]["model.safetensors"] == sha256((folder / "model.safetensors").read_bytes())
    assert read_json(result / "conversion.json")["source"] == made["source"]["files"]
    model, tokenizer = load(result)
    ids = tokenizer.encode("What is your name?")
    wanted = internlm2().logits(internlm2().config, internlm2().tensors, ids)
    assert type(model) is LlamaForCausalLM and (model(torch.tensor([ids])).logits[0] - wanted).abs().max() < 1e-5
    assert not mark.exists() and not list(station.root.glob("models/**/*.py"))


def test_a_converted_model_is_not_converted_again_and_the_manifest_is_byte_equal(station):
    station.hub.models["owner/tiny"] = repository(internlm2_folder(station.root))
    station.run()
    made, before = station.manifest()["model"], (station.root / "job/manifest.json").read_bytes()
    weights = station.root / made["ref"].replace(":", "/") / "model.safetensors"
    stamp = weights.stat().st_mtime_ns
    outcome = station.run(offline=True)
    assert outcome["code"] == 0 and "converting" not in outcome["said"]
    assert (station.root / "job/manifest.json").read_bytes() == before and weights.stat().st_mtime_ns == stamp


def test_a_folder_with_code_is_converted_in_a_place_of_its_own_and_stays_as_it_was(station):
    folder, mark = internlm().write(station.root / "models/mine"), station.root / "ran"
    train_sentencepiece(folder, SYMBOLS["internlm"])
    trap(folder, mark)
    before = {path.name: file_digest(path) for path in folder.iterdir()}
    assert station.run(LOCAL)["code"] == 0
    assert {path.name: file_digest(path) for path in folder.iterdir()} == before
    made = station.manifest()["model"]
    assert made["ref"].startswith("models:converted/mine-") and made["source"]["ref"] == "models:mine"
    assert not mark.exists()


def test_changed_weights_are_converted_to_another_folder(station):
    mine = internlm2_folder(station.root / "models")
    local = {"kind": "folder", "ref": "models:original"}
    station.run(local)
    first = station.manifest()["model"]["ref"]
    tensors = load_file(mine / "model.safetensors")
    tensors["output.weight"] += 1
    save_file(tensors, mine / "model.safetensors", metadata={"format": "pt"})
    station.run(local)
    assert station.manifest()["model"]["ref"] != first


def test_code_of_an_unknown_architecture_is_refused_with_the_reason_and_did_not_run(station):
    folder, mark = station.root / "models/mine", station.root / "ran"
    llama(folder).save_pretrained(folder)
    write_json(folder / "config.json", read_json(folder / "config.json") | {"model_type": "minicpm"})
    trap(folder, mark)
    text = error(station.run(LOCAL), 2)
    assert "asks for Python code (auto_map: configuration_x.py, modeling_x.py), which Tunestation never runs" in text
    assert "MiniCPM before version 3 is not carried by transformers" in text
    assert not mark.exists()


@torch.no_grad()
def test_a_native_model_that_asks_for_code_is_loaded_without_it(station):
    folder, mark = station.root / "models/mine", station.root / "ran"
    original = llama(folder)
    original.save_pretrained(folder)
    trap(folder, mark)
    assert station.run(LOCAL)["code"] == 0
    result = station.root / station.manifest()["model"]["ref"].replace(":", "/")
    model, tokenizer = load(result)
    assert torch.equal(model(torch.tensor([[5, 6]])).logits, original(torch.tensor([[5, 6]])).logits)
    assert tokenizer.encode("Hi") == make_tokenizer().encode("Hi")
    assert not mark.exists() and "auto_map" not in read_json(result / "config.json")
    assert os.path.samefile(folder / "model.safetensors", result / "model.safetensors")  # linked, not copied


@torch.no_grad()
def test_pickled_weights_of_a_native_model_become_safetensors(station):
    folder = station.root / "original"
    original = llama(folder)
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    torch.save(original.state_dict() | buffers, folder / "pytorch_model.bin")
    station.hub.models["owner/tiny"] = repository(folder)
    assert station.run()["code"] == 0
    made = station.manifest()["model"]
    result = station.root / made["ref"].replace(":", "/")
    assert "model.safetensors" in made["files"] and not list(result.glob("*.bin"))
    assert torch.equal(load(result)[0](torch.tensor([[5, 6]])).logits, original(torch.tensor([[5, 6]])).logits)


def test_pickled_weights_of_another_vocabulary_than_the_configuration_says_are_refused(station):
    folder = station.root / "original"
    torch.save(llama(folder).state_dict(), folder / "pytorch_model.bin")
    write_json(folder / "config.json", read_json(folder / "config.json") | {"vocab_size": 500})
    station.hub.models["owner/tiny"] = repository(folder)
    text = error(station.run(), 2)
    assert "holds model.embed_tokens.weight as [480, 16], but the vocab_size in config.json is 500." in text


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_that_would_run_a_program_is_refused_by_its_name(station):
    folder, evil = station.root / "original", Evil()
    evil.mark = station.root / "ran"
    torch.save(llama(folder).state_dict() | {"x": evil}, folder / "pytorch_model.bin")
    station.hub.models["owner/tiny"] = repository(folder)
    text = error(station.run(), 2)
    assert "is a pickle that wants more than tensors: posix.system. It was not read." in text and "/pytorch_model.bin" in text
    assert not evil.mark.exists() and not list(station.root.glob("models/converted/*/*"))


def test_a_variant_that_cannot_be_converted_is_refused_before_its_weights_are_downloaded(station):
    folder = qwen().write(station.root / "original")
    write_json(folder / "config.json", read_json(folder / "config.json") | {"rotary_pct": 0.25})
    (folder / "qwen.tiktoken").write_text("IQ== 0")
    station.hub.models["owner/tiny"] = repository(folder)
    assert "is a qwen model that cannot be converted: rotary_pct is 0.25." in error(station.run(), 2)
    assert not station.hub.asked("/model.safetensors")


def test_a_missing_vocabulary_is_named_before_the_conversion(station):
    station.hub.models["owner/tiny"] = repository(internlm2().write(station.root / "original"))
    assert "has no tokenizer (tokenizer.model)." in error(station.run(), 2)


def test_an_interrupted_conversion_is_taken_up_again(station):
    station.hub.models["owner/tiny"] = repository(internlm2_folder(station.root))
    error(station.run(largest_file=100_000), 1)
    assert not [path for path in station.root.glob("models/converted/*") if path.suffix == ""]
    outcome = station.run()
    assert outcome["code"] == 0, outcome
    assert station.manifest()["model"]["ref"].startswith("models:converted/")
    assert not list(station.root.glob("models/converted/*.partial"))


def test_an_unfinished_conversion_of_other_files_goes_with_the_next_one_unless_it_is_being_made(tmp_path, capsys):
    folder, digests = internlm2_folder(tmp_path / "models"), Digests(tmp_path / "cache")
    model = FetchedModel("models:original", None, None, {path.name: digests.of(path) for path in model_files(folder)})
    names = [f"original-{'0' * 16}", f"original-{'1' * 16}", f"original-two-{'0' * 16}"]
    left, working, others = (tmp_path / "models" / "converted" / f"{name}.partial" for name in names)
    for partial in (left, working, others):
        partial.mkdir(parents=True)
    with FileLock(working.with_suffix(".lock")):
        converted(model, Volumes(tmp_path / "models", tmp_path, tmp_path, tmp_path / "cache"), digests)
    assert [partial.exists() for partial in (left, working, others)] == [False, True, True]
    assert f"removed {left}, an unfinished conversion" in capsys.readouterr().out


def test_a_source_that_changes_while_it_is_converted_is_not_published_under_its_old_digests(tmp_path, monkeypatch):
    folder, digests = internlm2_folder(tmp_path / "models"), Digests(tmp_path / "cache")
    files = {path.name: digests.of(path) for path in model_files(folder)}
    volumes = Volumes(tmp_path / "models", tmp_path, tmp_path, tmp_path / "cache")

    def disturbed(source: Path, *others: object) -> dict[str, str]:
        written = convert(source, *others)
        os.utime(source / "model.safetensors", ns=(1, 1))
        return written

    monkeypatch.setattr("tunestation.models.native.convert.convert", disturbed)
    with pytest.raises(TunestationError, match="changed while it was converted"):
        converted(FetchedModel("models:original", None, None, files), volumes, digests)
    assert not [path for path in (tmp_path / "models/converted").iterdir() if path.suffix != ".lock"]
