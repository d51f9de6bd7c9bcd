"""Which family a configuration belongs to. No torch here: recipes are checked with it."""

from __future__ import annotations

from tunestation.models.native import baichuan, chatglm, internlm, internlm2, qwen
from tunestation.models.native.family import Family

FAMILIES = (internlm.FAMILY, internlm2.FAMILY, *baichuan.FAMILIES, chatglm.FAMILY, qwen.FAMILY)


def family_of(config: dict) -> Family | None:
    """The family that has to be converted; None for everything else."""
    return next((family for family in FAMILIES if family.is_theirs(config)), None)


def family_named(name: str) -> Family:
    """The family that a conversion record names."""
    return next(family for family in FAMILIES if family.name == name)
