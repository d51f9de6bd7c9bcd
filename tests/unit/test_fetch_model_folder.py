"""Every way in which a model folder can be unusable is said, all at once, before anything is loaded."""

import json
from pathlib import Path

import pytest

from tunestation.models.folder import check_model_folder, model_files, needs_conversion


def safetensors(*sizes: int) -> bytes:
    """A well-formed file with one uint8 tensor for each size."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for number, size in enumerate(sizes):
        header[f"t{number}"] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with nothing wrong."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(safetensors(10, 20))
    return tmp_path


def found(folder: Path) -> list[str]:
    return [str(problem) for problem in check_model_folder(folder, "m")]


def only(folder: Path) -> str:
    problems = found(folder)
    assert len(problems) == 1, problems
    return problems[0]


def index(folder: Path, *shards: str) -> None:
    weight_map = {f"w{number}": shard for number, shard in enumerate(shards)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_good_folder_has_no_problem(folder):
    assert found(folder) == []


def test_a_folder_that_is_not_there_is_said(tmp_path):
    assert only(tmp_path / "absent").startswith("m: is not a folder.")


def test_a_missing_config_is_named(folder):
    (folder / "config.json").unlink()
    assert only(folder).startswith("m/config.json: is missing")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_an_unreadable_config_is_named(folder, content):
    (folder / "config.json").write_bytes(content)
    assert only(folder).startswith("m/config.json: is not a JSON object.")


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    assert only(folder).startswith("m: has no weights (model.safetensors or model-*-of-*.safetensors).")


def test_pickled_weights_of_an_unknown_architecture_are_refused_with_a_way_out(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"model_type": "novel"}')
    text = only(folder)
    assert "as pickles only (pytorch_model.bin)" in text and "a revision with safetensors" in text
    assert "its model_type 'novel' is neither one that is tested here nor one that is converted" in text


def test_pickled_weights_of_a_known_architecture_are_rewritten(folder):
    assert not needs_conversion(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert found(folder) == [] and needs_conversion(folder)
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00002.bin")
    assert only(folder).startswith("m/pytorch_model.bin.index.json: is missing, but there are shards")


@pytest.mark.parametrize("config", ["config.json", "tokenizer_config.json"])
def test_a_known_architecture_loses_the_code_that_it_asks_for(folder, config):
    (folder / config).write_text(json.dumps({"model_type": "llama", "auto_map": {"AutoModel": "modeling_x.Model"}}))
    (folder / "modeling_x.py").write_text("raise SystemExit('executed')")
    assert found(folder) == [] and needs_conversion(folder)


def test_a_family_that_is_converted_needs_its_own_vocabulary(folder):
    fields = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps")
    config = {"model_type": "internlm2", "max_position_embeddings": 8} | dict.fromkeys(fields, 1)
    (folder / "config.json").write_text(json.dumps(config))
    assert only(folder).startswith("m: has no tokenizer (tokenizer.model).")
    (folder / "tokenizer.model").write_bytes(b"")
    assert found(folder) == [] and needs_conversion(folder)


def test_a_field_that_the_family_needs_is_named_when_it_is_missing(folder):
    (folder / "config.json").write_text('{"model_type": "internlm2"}')
    (folder / "tokenizer.model").write_bytes(b"")
    assert only(folder).startswith("m/config.json: is a internlm2 model that cannot be converted: its config.json has no '")


def test_a_variant_that_cannot_be_converted_says_why(folder):
    (folder / "config.json").write_text(
        json.dumps({"model_type": "qwen", "visual": {}, "kv_channels": 1, "num_attention_heads": 1, "hidden_size": 1})
    )
    (folder / "qwen.tiktoken").write_bytes(b"")
    assert only(folder) == "m/config.json: is a qwen model that cannot be converted: it sees pictures. Use the family's plain model."


def test_shards_that_the_index_names_and_nobody_has_are_listed(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00003.safetensors")
    index(folder, *(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)))
    text = only(folder)
    assert "names 2 of 3 files that are absent: model-00002-of-00003.safetensors, model-00003-of-00003.safetensors" in text


def test_an_index_that_points_out_of_the_folder_is_refused(folder):
    (folder.parent / "other.safetensors").write_bytes(safetensors(1))
    index(folder, "model.safetensors", "../other.safetensors")
    assert "absent: ../other.safetensors" in only(folder)


def test_weights_that_are_not_where_the_index_says_are_named(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_bytes(safetensors(10))
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    weight_map = {"t0": second, "t1": second, "w": first}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert only(folder) == (
        "m/model.safetensors.index.json: names 2 weights that are not where it says: t1 in model-00002-of-00002.safetensors, "
        "w in model-00001-of-00002.safetensors. Fetch or copy index and files again, all of one revision."
    )


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "transformer.wte.weight", "lm_head.weight"])
def test_an_embedding_or_a_head_of_another_vocabulary_than_the_configuration_says_is_named(folder, name):
    text = json.dumps({name: {"dtype": "U8", "shape": [6, 2], "data_offsets": [0, 12]}}).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 6}')
    assert found(folder) == []
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 8}')
    assert only(folder).startswith(f"m/model.safetensors: holds {name} as [6, 2], but the vocab_size in config.json is 8. Fetch it again")


def test_an_architecture_that_is_never_exported_is_refused_in_one_sentence(folder):
    (folder / "config.json").write_text('{"model_type": "opt"}')
    said = "m/config.json: has model_type 'opt', which cannot be merged: its files call embedding and head otherwise than the merge and its"
    assert only(folder).startswith(said)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert only(folder).startswith(said) and only(folder).endswith("Use a model that docs/models.md lists.")


def test_shards_without_an_index_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert only(folder).startswith("m/model.safetensors.index.json: is missing, but there are shards")


def test_an_index_without_a_weight_map_is_refused(folder):
    (folder / "model.safetensors.index.json").write_text("{}")
    assert only(folder).startswith("m/model.safetensors.index.json: names no weights")


def test_truncated_weights_are_named_with_both_sizes(folder):
    whole = safetensors(1000, 2000)
    (folder / "model.safetensors").write_bytes(whole[:-500])
    text = only(folder)
    assert text.startswith(f"m/model.safetensors: has {len(whole) - 500:,} bytes, but its header says {len(whole):,}")


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 40, (5).to_bytes(8, "little") + b"hello", safetensors(9)[:20]])
def test_weights_without_a_readable_header_are_named(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert only(folder).startswith("m/model.safetensors: is not a safetensors file, or its header is cut")


def test_a_folder_without_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    assert only(folder).startswith("m: has no tokenizer (tokenizer.json, tokenizer.model, vocab.json).")


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json"])
def test_other_tokenizer_files_count_too(folder, name):
    (folder / "tokenizer.json").rename(folder / name)
    assert found(folder) == []


def test_python_code_is_refused_and_named(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "modeling_x.py").write_text("raise SystemExit('executed')")
    (folder / "config.json").write_text('{"model_type": "deepseek"}')
    text = only(folder)
    assert "m: holds Python code (sub/modeling_x.py), which Tunestation never runs; DeepSeek-MoE of the first generation" in text


@pytest.mark.parametrize("config", ["config.json", "tokenizer_config.json"])
def test_a_configuration_that_asks_for_code_is_refused(folder, config):
    auto_map = {"AutoModel": "modeling_x.Model", "AutoTokenizer": ["tokenization_x.Slow", None]}
    (folder / "config.json").write_text('{"model_type": "x"}')
    (folder / config).write_text(json.dumps({"model_type": "x", "auto_map": auto_map}))
    text = only(folder)
    assert text.startswith(f"m/{config}: asks for Python code (auto_map: modeling_x.py, tokenization_x.py)")


def test_all_problems_are_reported_at_once(tmp_path):
    (tmp_path / "evil.py").write_text("")
    assert len(found(tmp_path)) == 4  # no config, code, no weights, no tokenizer


def test_only_what_is_loaded_counts_as_the_model(folder):
    for name in (
        "README.md",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "consolidated.safetensors",
        "LICENSE",
        "chat_template.jinja",
    ):
        (folder / name).write_text("")
    (folder / "onnx").mkdir()
    names = [path.name for path in model_files(folder)]
    assert names == ["LICENSE", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
