"""What every family that becomes a Llama has in common."""

from __future__ import annotations

NAMES = (
    "model.embed_tokens",
    *(f"model.layers.*.self_attn.{name}_proj" for name in "qkvo"),
    *(f"model.layers.*.mlp.{name}_proj" for name in ("gate", "up", "down")),
    "model.layers.*.input_layernorm",
    "model.layers.*.post_attention_layernorm",
    "model.norm",
    "lm_head",
)
"""The modules of transformers' LlamaForCausalLM that have weights."""


def llama_config(config: dict, biased: bool, theta: float, scaling: str | None = None, factor: float | None = None) -> dict:
    """A Llama's config.json from one with Llama's own keys; spelled so that programs older than transformers 5 read it too."""
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps")
    return {
        "architectures": ["LlamaForCausalLM"],
        **{key: config[key] for key in kept},
        "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "max_position_embeddings": config["max_position_embeddings"],
        "hidden_act": config.get("hidden_act", "silu"),
        "attention_bias": biased,
        "mlp_bias": False,
        "rope_theta": float(theta),
        "rope_scaling": {"rope_type": scaling, "type": scaling, "factor": float(factor)} if scaling else None,
    }
