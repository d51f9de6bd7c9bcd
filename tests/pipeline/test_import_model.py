"""XTuner's full fine-tunings become model folders: of our layout and of InternLM2's own, from one file and from DeepSpeed's shards."""

import json

import pytest
import torch
from filelock import FileLock
from original_families import internlm2
from safetensors.torch import load_file
from small_vocabularies import SYMBOLS, train_sentencepiece
from station import recipe
from test_export_merging import make_base
from test_import_xtuner import write_pth
from transformers import AutoModelForCausalLM, AutoTokenizer
from zero_shards import write_zero

from tunestation.errors import InputError, TunestationError
from tunestation.export import xtuner_model
from tunestation.export.xtuner_model import import_model
from tunestation.models.native.convert import convert

IDS = [5, 311, 17, 44, 9]


def tuned(base):
    """What a full fine-tuning of `base` would have left: names of XTuner, all in float32."""
    torch.manual_seed(2)
    return {f"llm.{name}": (weight + 0.1 * torch.randn_like(weight)).bfloat16().float() for name, weight in load_file(base).items()}


def around(path):
    """What lies beside `path`, but for the lock."""
    return sorted(found for found in path.parent.iterdir() if found.suffix != ".lock")


def same(folder, wanted):
    found = load_file(folder / "model.safetensors")
    assert found.keys() == {name.removeprefix("llm.") for name in wanted}
    for name, weight in wanted.items():
        assert torch.equal(found[name.removeprefix("llm.")].float(), weight), name


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("full") / "base", dtype=torch.bfloat16)


def test_a_file_with_all_weights_becomes_a_model(base, tmp_path):
    weights = tuned(base / "model.safetensors")
    buffers = {"llm.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    path = write_pth(tmp_path / "iter_10.pth", weights | buffers, optimizer={"state": {}, "param_groups": []})
    assert import_model(path, base, tmp_path / "out") == sum(weight.numel() for weight in weights.values())
    same(tmp_path / "out", weights)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert around(path) == [path, tmp_path / "out"]  # nothing is left beside it


@pytest.mark.parametrize(("stage", "world"), [(1, 1), (2, 3), (3, 4)])
def test_a_deepspeed_folder_with_all_weights_becomes_the_same_model(base, tmp_path, stage, world):
    weights = tuned(base / "model.safetensors")
    write_zero(tmp_path / "iter_10.pth", weights, stage, world, meta={"cfg": ""})
    import_model(tmp_path / "iter_10.pth", base, tmp_path / "out")
    same(tmp_path / "out", weights)


def test_a_tied_head_is_not_written_twice(tmp_path):
    base = make_base(tmp_path / "tied", tied=True, dtype=torch.bfloat16)
    weights = tuned(base / "model.safetensors")
    head = {"llm.lm_head.weight": weights["llm.model.embed_tokens.weight"]}
    import_model(write_pth(tmp_path / "iter_1.pth", weights | head), base, tmp_path / "out")
    same(tmp_path / "out", weights)


@pytest.mark.parametrize("converted", [False, True])
def test_internlm2_s_own_layout_becomes_ours_whether_the_base_was_converted_or_not(tmp_path, converted):
    original = internlm2()
    base, _ = own_layout(tmp_path / "base")
    if converted:
        convert(base, tmp_path / "converted", {}, "base")
        base = tmp_path / "converted"
    torch.manual_seed(0)
    weights = {name: (weight * (1 + 0.1 * torch.randn_like(weight))).bfloat16().float() for name, weight in original.tensors.items()}
    path = write_pth(tmp_path / "epoch_1.pth", {f"llm.{name}": weight for name, weight in weights.items()})
    import_model(path, base, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        found = model(torch.tensor([IDS])).logits[0].double()
    wanted = original.logits(original.config, weights, IDS)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert AutoTokenizer.from_pretrained(tmp_path / "out").decode(AutoTokenizer.from_pretrained(tmp_path / "out")("a b").input_ids)


def test_what_a_killed_import_left_goes_with_the_next_one_unless_it_is_going_on(base, tmp_path, capsys):
    path = write_pth(tmp_path / "iter_1.pth", tuned(base / "model.safetensors"))
    left = tmp_path / ".importing-x"
    (left / "source").mkdir(parents=True)
    with FileLock(tmp_path / ".importing.lock"), pytest.raises(TunestationError, match="another import into this folder is going on"):
        import_model(path, base, tmp_path / "out")
    assert left.exists()
    import_model(path, base, tmp_path / "out")
    assert around(path) == [path, tmp_path / "out"]
    assert capsys.readouterr().out == f"removed {left}, which an interrupted import left\n"


def own_layout(folder):
    """A base in InternLM2's own layout, and its weights as a checkpoint holds them."""
    original = internlm2()
    base = original.write(folder)
    train_sentencepiece(base, SYMBOLS["internlm2"])
    return base, {f"llm.{name}": weight.float() for name, weight in original.tensors.items()}


@pytest.mark.parametrize(("rewritten", "links", "copies"), [(False, True, 1), (False, False, 2), (True, True, 2)])
def test_the_disk_has_to_take_all_that_is_written(base, tmp_path, monkeypatch, rewritten, links, copies):
    model, weights = own_layout(tmp_path / "base") if rewritten else (base, tuned(base / "model.safetensors"))
    path, size = write_pth(tmp_path / "iter_1.pth", weights), 2 * sum(weight.numel() for weight in weights.values())
    free, written = copies * size - 1, []

    def convert_and_look(source, into, *others):
        convert(source, into, *others)
        files = {found.stat().st_ino: found.stat().st_size for found in into.parent.rglob("*.safetensors")}
        written.append(sum(files.values()))

    monkeypatch.setattr(xtuner_model, "convert", convert_and_look)
    monkeypatch.setattr("tunestation.fetching.place.free_space", lambda path: free)
    if not links:
        monkeypatch.setattr("os.link", refused)
    with pytest.raises(TunestationError, match=r"'out' needs .* more on the disk of .*TUNE_MODELS"):
        import_model(path, model, tmp_path / "out")
    assert not written and not (tmp_path / "out").exists()
    free += 1
    import_model(path, model, tmp_path / "out")
    assert 0 <= written[0] - copies * size < 20_000  # the headers of the files


def refused(*_names):
    raise OSError("links are not supported here")


def wrong(base):
    """Name -> (weights, message)."""
    weights = tuned(base / "model.safetensors")
    last = "llm.model.layers.1.mlp.down_proj.weight"
    name = last.removeprefix("llm.")
    return {
        "a missing weight": (
            {key: value for key, value in weights.items() if key != last},
            rf"iter_1.pth: has fewer tensors than the configuration says; missing: {name}\. Give the model",
        ),
        "another shape": (
            weights | {last: torch.ones(32, 8)},
            rf"iter_1.pth: has tensors of another shape than the configuration says: {name} \[32, 8\] instead of \[32, 48\]\. Give",
        ),
        "one too many": (
            weights | {"llm.model.extra.weight": torch.ones(2)},
            r"more tensors than the configuration says: model\.extra\.weight\.",
        ),
        "no numbers": (weights | {last: torch.full((32, 48), torch.nan)}, rf"the weight {name} is not finite\."),
    }


@pytest.mark.parametrize("what", ["a missing weight", "another shape", "one too many", "no numbers"])
def test_what_is_no_whole_model_is_refused_and_leaves_nothing(base, tmp_path, what):
    weights, message = wrong(base)[what]
    path = write_pth(tmp_path / "iter_1.pth", weights)
    with pytest.raises(InputError, match=message):
        import_model(path, base, tmp_path / "out")
    assert around(path) == [path]


def test_the_task_tells_a_full_fine_tuning_from_an_adapter_and_recipes_can_name_the_result(station, tmp_path):
    path = write_pth(tmp_path / "iter_7.pth", tuned(station.model / "model.safetensors"))
    said = station.invoke("import-xtuner", str(path), "--model", "tiny", "--name", "whole").splitlines()
    assert said[0].startswith("a full fine-tuning of ") and said[0].endswith(" weights")
    assert said[-1] == f"The model: {station.root}/home/models/whole"
    station.write(recipe(name="on", model={"source": {"kind": "folder", "path": "whole"}}))
    assert "no problems" in station.invoke("check", "on")
    config = json.loads((station.model.parent / "whole" / "config.json").read_text())
    assert config["architectures"] == json.loads((station.model / "config.json").read_text())["architectures"]
    assert "is there already" in station.invoke("import-xtuner", str(path), "--model", "tiny", "--name", "whole", code=2)
