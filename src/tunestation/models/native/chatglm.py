"""ChatGLM2-6B and ChatGLM3-6B to transformers' GLM: packed query_key_value with bias, few key heads, half of each head rotated."""

from __future__ import annotations

from tunestation.models.native.family import ATTENTION, Chat, Family, Line, Rows, Vocabulary, same_shape

ADDED = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
"""The last two as GLM-4 spells them: theirs are `sop` and `eop`, which stand within philosophy and people."""
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


def table(config: dict) -> tuple[Line, ...]:
    """query_key_value holds all queries, then the few keys, then the few values; dense_h_to_4h gate over up, as GLM's own."""
    head, groups = config["kv_channels"], config["multi_query_group_num"]
    rows = Rows(1, (config["num_attention_heads"] * head, groups * head, groups * head))
    layer = "transformer.encoder.layers.*"
    return (
        Line(f"{layer}.self_attention.query_key_value", ATTENTION, rows),
        *same_shape(
            {
                "transformer.embedding.word_embeddings": "model.embed_tokens",
                f"{layer}.input_layernorm": "model.layers.*.input_layernorm",
                f"{layer}.self_attention.dense": "model.layers.*.self_attn.o_proj",
                f"{layer}.post_attention_layernorm": "model.layers.*.post_attention_layernorm",
                f"{layer}.mlp.dense_h_to_4h": "model.layers.*.mlp.gate_up_proj",
                f"{layer}.mlp.dense_4h_to_h": "model.layers.*.mlp.down_proj",
                "transformer.encoder.final_layernorm": "model.norm",
                "transformer.output_layer": "lm_head",
            }
        ),
    )


def _config(config: dict, biased: bool) -> dict:
    return {
        "architectures": ["GlmForCausalLM"],
        "vocab_size": config["padded_vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["ffn_hidden_size"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["multi_query_group_num"],
        "head_dim": config["kv_channels"],
        "max_position_embeddings": config["seq_length"],
        "rms_norm_eps": config["layernorm_epsilon"],
        "hidden_act": "silu",
        "attention_bias": biased,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    }


def _refusal(config: dict) -> str:
    """Each switch that the equations above do not have."""
    wanted = {
        "multi_query_attention": True,
        "rmsnorm": True,
        "post_layer_norm": True,
        "apply_residual_connection_post_layernorm": False,
        "add_bias_linear": False,
        "add_qkv_bias": True,
    }
    other = [f"{key} is {config.get(key)}" for key, value in wanted.items() if config.get(key) != value]
    other += [f"{key} is set" for key in ("quantization_bit", "pre_seq_len") if config.get(key)]
    other += [f"rope_ratio is {config['rope_ratio']}"] if config.get("rope_ratio", 1) != 1 else []
    return ", ".join(other)


def _vocabulary(config: dict) -> Vocabulary:
    respelled = {"[gMASK]sop": "[gMASK]<sop>"}
    return Vocabulary("tokenizer.model", None, 2, 0, 0, added=(*ADDED, *ROLES), begin=("[gMASK]", "<sop>"), respelled=respelled)


def _chat(files: dict) -> Chat:
    """The tokenizer of ChatGLM3's chat model lists its role tokens; the others are asked as ChatGLM2 is."""
    if "<|user|>" in str(files["tokenizer"]):
        return Chat("chatglm3", ("<|user|>", "<|observation|>"))
    return Chat("chatglm2")


FAMILY = Family(
    name="chatglm",
    target="glm",
    is_theirs=lambda config: config.get("model_type") == "chatglm" and "multi_query_group_num" in config,
    layers=lambda config: config["num_layers"],
    table=table,
    config=_config,
    vocabulary=_vocabulary,
    ignored=("rotary_pos_emb.inv_freq",),
    refusal=_refusal,
    chat=_chat,
    version=3,
)
