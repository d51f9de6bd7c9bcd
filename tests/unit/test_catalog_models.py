"""The catalogue of models is complete, and its shapes add up to what the models are called."""

import pytest

from tunestation.catalog.models import FILE, Model, Shape, find, models
from tunestation.data.templates import TEMPLATES
from tunestation.listing import models as listed
from tunestation.models.native.registry import FAMILIES

BILLIONS = {
    "huggyllama/llama-7b": 6.74,
    "lmsys/vicuna-13b-v1.5": 13.02,
    "meta-llama/Llama-2-70b-hf": 68.98,
    "meta-llama/Meta-Llama-3-8B": 8.03,
    "meta-llama/Llama-3.1-405B": 405.9,
    "meta-llama/Llama-3.2-1B": 1.24,
    "meta-llama/Llama-3.2-3B": 3.21,
    "internlm/internlm-7b": 7.32,
    "internlm/internlm-20b": 20.08,
    "internlm/internlm2-1_8b": 1.89,
    "internlm/internlm2-7b": 7.74,
    "internlm/internlm2-20b": 19.86,
    "internlm/internlm3-8b-instruct": 8.80,
    "baichuan-inc/Baichuan-7B": 7.0,
    "baichuan-inc/Baichuan2-13B-Base": 13.9,
    "THUDM/chatglm3-6b": 6.24,
    "Qwen/Qwen-7B": 7.72,
    "Qwen/Qwen-72B": 72.3,
    "Qwen/Qwen1.5-0.5B": 0.46,
    "Qwen/Qwen1.5-110B": 111.2,
    "Qwen/Qwen2.5-7B": 7.62,
    "Qwen/Qwen2.5-72B": 72.7,
    "Qwen/Qwen3-0.6B": 0.60,
    "Qwen/Qwen3-32B": 32.8,
    "Qwen/Qwen3-30B-A3B": 30.5,
    "mistralai/Mistral-7B-v0.1": 7.24,
    "mistralai/Mixtral-8x7B-v0.1": 46.7,
    "01-ai/Yi-34B": 34.4,
    "google/gemma-2b": 2.51,
    "google/gemma-7b": 8.54,
    "microsoft/Phi-3-mini-4k-instruct": 3.82,
    "deepseek-ai/deepseek-coder-6.7b-base": 6.74,
    "CohereForAI/c4ai-command-r-plus": 103.8,
}
"""Billions of weights, as the models' pages state them."""


def weights(shape: Shape) -> int:
    """Weights of the matrices of a decoder with gated feed-forwards."""
    hidden, heads = shape.hidden_size, shape.num_attention_heads
    head = shape.head_dim or hidden // heads
    attention = 2 * hidden * heads * head + 2 * hidden * shape.num_key_value_heads * head
    width = shape.expert_intermediate_size * shape.experts if shape.experts else shape.intermediate_size
    embeddings = shape.vocab_size * hidden * (1 if shape.tie_word_embeddings else 2)
    return shape.num_hidden_layers * (attention + 3 * hidden * width) + embeddings


@pytest.mark.parametrize("repo", BILLIONS)
def test_a_shape_has_the_weights_that_the_model_is_known_for(repo):
    assert weights(models()[repo].shape) / 1e9 == pytest.approx(BILLIONS[repo], rel=0.01)


def test_every_family_is_native_converted_or_has_a_reason():
    for repo, model in models().items():
        assert model.shape.standing != "not possible" or model.shape.why_not, repo
    converted = {model.shape.family for model in models().values() if model.shape.standing == "converted"}
    assert converted == {family.name for family in FAMILIES}


def test_every_template_exists():
    assert {model.template for model in models().values()} - {None, "auto"} <= set(TEMPLATES)


def test_a_model_is_found_by_either_hub_s_name():
    assert find("Shanghai_AI_Laboratory/internlm2-chat-7b") is find("internlm/internlm2-chat-7b")
    assert find("nobody/nothing") is None and isinstance(find("Qwen/Qwen-7B"), Model)


def test_models_are_listed_by_any_text_in_their_line():
    text = listed("internlm2-chat")
    assert "internlm/internlm2-chat-1_8b" in text and "Qwen" not in text and "internlm2_chat" in text
    assert "deepseek-moe" in listed("not possible") and "No model mentions 'nonsense'" in listed("nonsense")


def test_no_comment_of_the_file_is_wider_than_a_screen():
    assert max(len(line) for line in FILE.read_text(encoding="utf-8").splitlines() if line.startswith("#")) <= 130
