"""Every architecture that docs/models.md lists goes the whole way: fetch, prepare, train, convert, merge, and an answer."""

import shutil
from pathlib import Path

import pytest
import torch
from original_families import internlm, internlm2
from original_packed import baichuan, chatglm, qwen
from small_vocabularies import write_vocabulary
from station import Station, record, rows
from station import recipe as plain_recipe
from tiny import make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from tunestation.chat.engine import Engine
from tunestation.chat.weights import Weights
from tunestation.errors import InputError
from tunestation.models.experts import refuse_quantised, share_in_experts
from tunestation.models.native.registry import EXPERTS, NATIVE
from tunestation.pipeline.files import read_json, write_json
from tunestation.recipe.schema import Generation
from tunestation.training.model import load_base

SHAPE = {
    "vocab_size": 480,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEAD = {"head_dim": 8}
SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}
KINDS = {
    "cohere": {},
    "cohere2": HEAD | {"sliding_window": 64},
    "deepseek_v2": LATENT | {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                             "first_k_dense_replace": 1, "head_dim": 8, "n_group": 1, "topk_group": 1},
    "gemma": HEAD,
    "gemma2": HEAD | {"sliding_window": 64},
    "gemma3_text": HEAD | {"sliding_window": 64},
    "glm": HEAD,
    "glm4": HEAD,
    "gpt_bigcode": {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "internlm3": HEAD,
    "llama": {},
    "minicpm3": LATENT | {"head_dim": 16},
    "mistral": HEAD | {"sliding_window": 64},
    "mixtral": HEAD | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phi3": {"sliding_window": 64},
    "qwen2": {},
    "qwen2_moe": SPARSE | {"shared_expert_intermediate_size": 24},
    "qwen3": HEAD,
    "qwen3_moe": SPARSE | HEAD,
    "starcoder2": {"sliding_window": 64},
}  # fmt: skip
ORIGINALS = {
    "internlm": (internlm(), "internlm_chat"),
    "internlm2": (internlm2(), "internlm2_chat"),
    "baichuan-7b": (baichuan(), "baichuan_chat"),
    "baichuan-13b": (baichuan(alibi=True), "baichuan_chat"),
    "baichuan2-7b": (baichuan(second=True), "baichuan_chat"),
    "chatglm": (chatglm(), "auto"),
    "qwen": (qwen(), "qwen_chat"),
}
"""Family -> a tiny model in its own layout, and the template it is trained with."""


def write_model(kind: str, folder: Path) -> None:
    """A tiny random model of one class of transformers, with the tests' tokenizer and, as in old releases, no word of a tied head."""
    ids = {key: SHAPE[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(kind, **((ids if kind == "gpt_bigcode" else SHAPE) | KINDS[kind]))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    written = read_json(folder / "config.json")
    if written["tie_word_embeddings"]:
        del written["tie_word_embeddings"]
        write_json(folder / "config.json", written)
    make_tokenizer().save_pretrained(folder)


def write_original(name: str, folder: Path) -> None:
    """A tiny random model in its family's own layout."""
    ORIGINALS[name][0].write(folder, torch.bfloat16)
    write_vocabulary(name, folder)


@pytest.fixture(scope="module")
def station(tmp_path_factory) -> Station:
    station = Station(tmp_path_factory.mktemp("families"))
    station.write_rows(rows(3))
    return station


def through(station: Station, name: str, method: str, template: str) -> dict:
    """Run the recipe from fetch to merge and ask the result; returns the record of the training."""
    train = {"method": method, "epochs": 1, "global_batch_size": 1, "max_tokens": 64, "save_steps": 100}
    changes = {"model": {"source": {"kind": "folder", "path": name}}, "train": train, "template": template}
    station.write(plain_recipe(name=name, evaluate={"fraction": 0.0, "prompts": []}, **changes))
    merged = station.make("merge", name=name)
    question = [{"role": "user", "content": "What is 1 and 1?"}]
    engine = Engine(Weights(model=str(merged)))
    answer = engine.answer(question, Generation(temperature=0, max_new_tokens=4))
    engine.close()
    assert isinstance(answer, str)
    load_base(merged, None)  # which refuses a folder that lacks a weight, as a head that was the embedding
    assert record(merged)["metrics"]["merged_kl"] < 0.05
    return record(station.make("train", name=name))


def test_every_kind_that_is_called_native_is_tried_here():
    assert set(KINDS) == NATIVE


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_native_architecture_goes_the_whole_way(station, kind):
    write_model(kind, station.model.with_name(kind))
    trained = through(station, kind, "lora" if kind in EXPERTS else "qlora", "auto")
    assert trained["metrics"]["loss"] > 0
    shutil.rmtree(station.model.with_name(kind))


@pytest.mark.parametrize("name", sorted(ORIGINALS))
def test_a_converted_family_goes_the_whole_way(station, name):
    write_original(name, station.model.with_name(name))
    assert through(station, name, "qlora", ORIGINALS[name][1])["metrics"]["loss"] > 0


@pytest.mark.parametrize("kind", EXPERTS)
def test_a_mixture_of_experts_is_not_quantised_and_says_how_much_of_it_would_stay(tmp_path, kind):
    write_model(kind, tmp_path)
    assert share_in_experts(tmp_path) > 0.1
    with pytest.raises(InputError, match=r"train\.method: is 'qlora', but the model is a mixture of experts: \d\d% of its weights are 3-d"):
        refuse_quantised(tmp_path)


def test_other_models_have_no_weights_that_would_stay_in_16_bit(tmp_path):
    write_model("llama", tmp_path)
    assert share_in_experts(tmp_path) == 0
    refuse_quantised(tmp_path)
