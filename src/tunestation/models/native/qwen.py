"""Qwen of the first generation (1.8B, 7B, 14B, 72B) to Qwen2: packed c_attn with bias, gate and up the other way round."""

from __future__ import annotations

from tunestation.models.native.family import ATTENTION, Chat, Family, Limit, Line, Rows, Vocabulary, same_shape

PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How the family's tokenizer cuts text before tiktoken's ranks apply."""
END = "<|endoftext|>"
SPECIAL = (END, "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))


def table(config: dict) -> tuple[Line, ...]:
    """c_attn holds all queries, then all keys, then all values; w2 goes through the activation, w1 does not."""
    width = config["kv_channels"] * config["num_attention_heads"]
    layer = "transformer.h.*"
    return (
        Line(f"{layer}.attn.c_attn", ATTENTION, Rows(1, (width,) * 3)),
        *same_shape(
            {
                "transformer.wte": "model.embed_tokens",
                f"{layer}.ln_1": "model.layers.*.input_layernorm",
                f"{layer}.attn.c_proj": "model.layers.*.self_attn.o_proj",
                f"{layer}.ln_2": "model.layers.*.post_attention_layernorm",
                f"{layer}.mlp.w2": "model.layers.*.mlp.gate_proj",
                f"{layer}.mlp.w1": "model.layers.*.mlp.up_proj",
                f"{layer}.mlp.c_proj": "model.layers.*.mlp.down_proj",
                "transformer.ln_f": "model.norm",
                "lm_head": "lm_head",
            }
        ),
    )


def _config(config: dict, biased: bool) -> dict:
    heads = config["num_attention_heads"]
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"] // 2,  # the original counts gate and up together
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": config["seq_length"],
        "rms_norm_eps": config["layer_norm_epsilon"],
        "hidden_act": "silu",
        "rope_theta": float(config["rotary_emb_base"]),
        "use_sliding_window": False,
    }


def _refusal(config: dict) -> str:
    other = [f"rotary_pct is {config['rotary_pct']}"] if config.get("rotary_pct", 1.0) != 1.0 else []
    other += ["it has biases besides c_attn's (no_bias is false)"] if not config.get("no_bias", True) else []
    other += ["it sees pictures"] if "visual" in config else []
    other += (
        ["its heads do not add up to hidden_size"] if config["kv_channels"] * config["num_attention_heads"] != config["hidden_size"] else []
    )
    other += ["it is quantised"] if "quantization_config" in config else []
    return ", ".join(other)


def _limit(config: dict) -> Limit | None:
    used = [text for key, text in (("use_dynamic_ntk", "its own NTK rope"), ("use_logn_attn", "log-n attention")) if config.get(key)]
    return Limit(config["seq_length"], f"past it the original uses {' and '.join(used)}, which Qwen2 has not") if used else None


FAMILY = Family(
    name="qwen",
    target="qwen2",
    is_theirs=lambda config: config.get("model_type") == "qwen",
    layers=lambda config: config["num_hidden_layers"],
    table=table,
    config=_config,
    vocabulary=lambda config: Vocabulary("qwen.tiktoken", None, END, END, None, added=SPECIAL, pattern=PATTERN),
    ignored=("rotary_emb.inv_freq", "attn.masked_bias"),
    refusal=_refusal,
    limit=_limit,
    chat=lambda files: Chat("qwen_chat", ("<|im_end|>",)) if files["generation"].get("chat_format") == "chatml" else None,
    version=2,
)
