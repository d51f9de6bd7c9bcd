"""Which models take transformers' own step, and why."""

import pytest
from peft import LoraConfig, get_peft_model
from test_fast_step import SHAPE, adapted
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tunestation.training.fast.model import obstacle


def test_models_that_it_does_not_know_are_named():
    assert obstacle(adapted(), 10**6) is None
    assert obstacle(adapted("nf4"), 10**6) is None
    assert obstacle(LlamaForCausalLM(LlamaConfig(**SHAPE)), 30) == "all weights learn"
    strange = adapted()
    strange.get_base_model().config.hidden_act = "gelu"
    assert obstacle(strange, 30) == "it knows silu and gelu by tanh, not 'gelu'"
    strange.get_base_model().config.model_type = "gpt_oss"
    assert obstacle(strange, 30) == "it does not know the family 'gpt_oss'"
    dropping = adapted(family="phi3")
    dropping.get_base_model().config.resid_pdrop = 0.1
    assert obstacle(dropping, 30) == "it knows no dropout but that of adapters"


def test_a_window_is_in_the_way_of_longer_documents_alone():
    model = adapted(family="mistral")
    assert obstacle(model, 40) is None
    assert obstacle(model, 1041) == "documents of up to 1,041 tokens go beyond its sliding window of 40"


@pytest.mark.parametrize(
    ("options", "learns"),
    [
        ({"use_dora": True}, "layers.0.self_attn.q_proj.lora_magnitude_vector.default.weight"),
        ({"bias": "lora_only"}, "layers.0.self_attn.q_proj.base_layer.bias"),
        ({"bias": "all"}, "layers.0.self_attn.q_proj.base_layer.bias"),
        ({"lora_bias": True}, "layers.0.self_attn.q_proj.lora_B.default.bias"),
        ({"modules_to_save": ["post_attention_layernorm"]}, "layers.0.post_attention_layernorm.modules_to_save.default.weight"),
        ({"modules_to_save": ["lm_head"]}, "lm_head.modules_to_save.default.weight"),
        ({"modules_to_save": ["embed_tokens"]}, "embed_tokens.modules_to_save.default.weight"),
    ],
)
def test_whatever_else_learns_is_named_and_not_left_out_in_silence(options, learns):
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE))
    found = obstacle(get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)), 30)
    assert found.removeprefix("model.") == f"{learns} learns"


def test_rank_and_scale_by_pattern_are_no_obstacle():
    options = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}, "use_rslora": True}
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)
    assert obstacle(get_peft_model(LlamaForCausalLM(LlamaConfig(**SHAPE)), config), 30) is None
