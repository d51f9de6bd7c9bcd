"""Which layers get adapters: peft's rule over the names that a family gives its layers, without the model. No torch here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from tunestation.training.shape import Shape

EVERY = "all-linear"
SINGLE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PACKED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
"""Linear layers of a decoder layer, in the order of `Shape.products`: all of them for themselves, or several as one."""
ENDS = ("model.embed_tokens", "lm_head")

Targets = str | Sequence[str]
"""`all-linear`, a regular expression for whole names, or a list of names or of their ends behind a dot."""


def matches(targets: Targets, name: str) -> bool:
    """Whether the layer `name` is adapted, by peft's rule."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def called(shape: Shape) -> tuple[str, ...]:
    """The linear layers of a decoder layer by their last names."""
    return PACKED if shape.packed else SINGLE


def names(shape: Shape) -> list[list[str]]:
    """The whole names of each linear layer of a decoder layer, in all decoder layers."""
    found = []
    for name in called(shape):
        part = "mlp" if name.startswith(("gate", "up", "down")) else "self_attn"
        found.append([f"model.layers.{index}.{part}.{name}" for index in range(shape.layers)])
    return found


def more_learns(config: dict) -> bool:
    """Whether an adapter of this configuration lets more learn than A and B: magnitudes, biases, whole modules or rows of an embedding."""
    whole = config.get("modules_to_save") or config.get("trainable_token_indices")
    return bool(config.get("use_dora") or config.get("lora_bias") or whole or config.get("bias", "none") != "none")


def under(shape: Shape, targets: Targets) -> Shape:
    """`shape` with adapters on `targets`, of a family that is in `families.NAMED`."""
    if targets == EVERY:
        return shape
    counts = tuple(sum(matches(targets, name) for name in layers) for layers in names(shape))
    whole = all(count == shape.layers for count in counts)
    return replace(shape, adapted=() if whole else counts, ends=sum(matches(targets, name) for name in ENDS))


def in_vain(shape: Shape, targets: Sequence[str]) -> list[str]:
    """Those of a list that no layer has."""
    every = [*ENDS, *(name for layers in names(shape) for name in layers)]
    return [target for target in targets if not any(matches([target], name) for name in every)]
