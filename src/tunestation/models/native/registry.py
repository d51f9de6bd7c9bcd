"""Which family a configuration belongs to, and what is carried without conversion. No torch here: recipes are checked with it."""

from __future__ import annotations

from tunestation.models.native import baichuan, chatglm, internlm, internlm2, qwen
from tunestation.models.native.family import Family

FAMILIES = (internlm.FAMILY, internlm2.FAMILY, *baichuan.FAMILIES, chatglm.FAMILY, qwen.FAMILY)
CLEAN_VERSION = 2
"""Raised whenever a model of no family would become other bytes."""
EXPERTS = ("deepseek_v2", "mixtral", "qwen2_moe", "qwen3_moe")
"""model_types that transformers 5 gives one 3-d parameter for all experts of a layer."""
DENSE = ("cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt_bigcode", "internlm3", "llama")
DENSE += ("minicpm3", "mistral", "phi3", "qwen2", "qwen3", "starcoder2")
NATIVE = frozenset((*EXPERTS, *DENSE))
"""model_types of transformers that are tested here: their weights need no code, whatever their folder asks for."""
REASONS = {
    "chatglm": "ChatGLM-6B of the first generation is carried by no native architecture",
    "deepseek": "DeepSeek-MoE of the first generation is not carried by transformers",
    "minicpm": "MiniCPM before version 3 is not carried by transformers",
}
"""model_type -> why it is neither native nor converted."""
NAMED_OTHERWISE = "its files call embedding and head otherwise than the merge and its proof look for them"
UNMERGED = {
    **dict.fromkeys(("biogpt", "bloom", "ctrl", "gpt_neox", "gpt_neox_japanese", "openai-gpt", "opt"), NAMED_OTHERWISE),
    "gpt2": "its layers are stored transposed",
}
"""model_type -> why a model that transformers carries is not taken: what is trained could not be merged and proved."""


def family_of(config: dict) -> Family | None:
    """The family that has to be converted; None for everything else."""
    return next((family for family in FAMILIES if family.is_theirs(config)), None)


def family_named(name: str) -> Family:
    """The family that a conversion record names."""
    return next(family for family in FAMILIES if family.name == name)


def version_of(family: Family | None) -> int:
    """The version of the conversion that `family`, or a model of none, goes through."""
    return family.version if family else CLEAN_VERSION


def raised_versions(name: str | None) -> dict[str, int]:
    """Versions above the first, by family, of the conversions that a model of the family `name` goes through; of any family for None."""
    among = {family.name: family.version for family in FAMILIES if name in (None, family.name)}
    return {family: version for family, version in {"": CLEAN_VERSION, **among}.items() if version > 1}


def why_not(config: dict) -> str:
    """Why a model of this configuration cannot be had without its own code."""
    kind = config.get("model_type")
    return REASONS.get(kind, f"its model_type '{kind}' is neither one that is tested here nor one that is converted")
