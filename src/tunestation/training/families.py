"""Which architectures plans are made for, and which of them the fast step knows. No torch here."""

from __future__ import annotations

NORM_OFFSETS = {"llama": 0, "internlm3": 0, "mistral": 0, "qwen2": 0, "qwen3": 0, "phi3": 0, "gemma": 1}
"""Families with layers as `fast.block` describes them -> what their norms add to their weights."""
NAMED = frozenset((*NORM_OFFSETS, "cohere", "cohere2", "gemma2", "gemma3_text", "tunestation_alibi"))
"""Families whose layers are called as Llama's, or as Phi-3's packed ones."""
TIED = frozenset(("cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "gpt_bigcode", "minicpm3", "starcoder2"))
"""Families whose head is the embedding where config.json does not say: older releases leave it to their class in transformers."""
FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""What config.json calls the count of a layer's experts, by family."""


def kind(config: dict) -> str | None:
    """The family of a config.json, or of an entry of the catalogue."""
    return config.get("model_type", config.get("family"))


def missing(config: dict) -> list[str]:
    """Fields that a plan needs and `config` does not have."""
    return [name for name in FIELDS if name not in config]


def mixes(config: dict) -> bool:
    """Whether `config` is of a mixture of experts, not all of whose weights work on a token."""
    return any(config.get(name) for name in EXPERTS)
