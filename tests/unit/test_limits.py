"""A converted model takes texts as long as it computes rightly, and no longer."""

import json

import pytest

from tunestation.errors import InputError
from tunestation.models.limits import check_length, context_of, limit_of
from tunestation.models.native.registry import EXPERTS, FAMILIES, NATIVE, family_of, why_not

QWEN = {"model_type": "qwen", "seq_length": 8192}


def write(folder, name, value):
    (folder / name).write_text(json.dumps(value))


@pytest.mark.parametrize("switch", ["use_dynamic_ntk", "use_logn_attn"])
def test_qwen_is_limited_where_it_has_rules_of_its_own(tmp_path, switch):
    write(tmp_path, "config.json", QWEN | {switch: True})
    check_length(tmp_path, 8192)
    with pytest.raises(InputError, match=r"train\.max_tokens: is 8193, but the converted model equals the original up to 8192 tokens only"):
        check_length(tmp_path, 8193)


@pytest.mark.parametrize("config", [QWEN, {"model_type": "internlm2"}, {"model_type": "llama"}])
def test_models_without_such_rules_are_not_limited(tmp_path, config):
    write(tmp_path, "config.json", config)
    assert limit_of(tmp_path) is None


def test_a_converted_folder_remembers_the_limit_of_its_source(tmp_path):
    write(tmp_path, "config.json", {"model_type": "llama"})
    write(tmp_path, "conversion.json", {"limit": {"tokens": 2048, "why": "keys"}})
    assert limit_of(tmp_path).tokens == 2048
    write(tmp_path, "conversion.json", {"limit": None})
    assert limit_of(tmp_path) is None


def test_internlm_of_the_first_generation_is_limited_to_what_it_was_trained_on(tmp_path):
    write(tmp_path, "config.json", {"model_type": "internlm", "max_position_embeddings": 2048})
    assert limit_of(tmp_path).tokens == 2048 and "unrotated" in limit_of(tmp_path).why


def test_each_family_is_told_from_the_others_by_its_configuration():
    baichuan = {"model_type": "baichuan", "vocab_size": 64000, "max_position_embeddings": 4096}
    second = baichuan | {"vocab_size": 125696}
    alibi = {"model_type": "baichuan", "vocab_size": 64000, "model_max_length": 4096}
    configs = [{"model_type": name} for name in ("internlm", "internlm2", "qwen")]
    configs += [baichuan, second, alibi, alibi | {"vocab_size": 125696}, {"model_type": "chatglm", "multi_query_group_num": 2}]
    found = [family_of(config).name for config in configs]
    assert sorted(found) == sorted(family.name for family in FAMILIES)
    assert family_of({"model_type": "chatglm"}) is None and "ChatGLM-6B of the first generation" in why_not({"model_type": "chatglm"})
    assert not {family_of(config) for config in ({"model_type": name} for name in NATIVE)} - {None}
    assert set(EXPERTS) < NATIVE


@pytest.mark.parametrize(
    ("config", "context"), [({"max_position_embeddings": 1024}, 1024), ({"max_position_embeddings": None}, None), ({}, None)]
)
def test_a_model_was_made_for_the_length_that_its_configuration_names(tmp_path, config, context):
    write(tmp_path, "config.json", config)
    assert context_of(tmp_path) == context
    assert context_of(tmp_path / "nowhere") is None
