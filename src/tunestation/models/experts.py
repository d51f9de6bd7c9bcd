"""Mixtures of experts: transformers 5 keeps all experts of a layer in one 3-d parameter, which bitsandbytes leaves in 16 bit."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tunestation.errors import InputError, Problem

if TYPE_CHECKING:
    import torch

LARGEST = 0.05
"""Share of the weights that may stay in 16 bit unnoticed."""


def quantise_problem(share: float | None = None) -> Problem:
    """Why a mixture of experts has no 4-bit base; `share` of its weights are in 3-d parameters, if that is known."""
    part = f"{share:.0%} of its weights" if share else "most of its weights"
    what = f"is 'qlora', but the model is a mixture of experts: {part} are 3-d parameters, which bitsandbytes leaves in 16 bit."
    return Problem(what, "train.method", "Set it to 'lora', and plan for the memory of a bfloat16 base.")


def refuse_quantised(folder: Path) -> None:
    """Raise InputError if 4 bit would leave most weights of the model in `folder` as they are. Loads no weights."""
    share = share_in_experts(folder)
    if share > LARGEST:
        raise InputError(problems=[quantise_problem(share)])


def share_in_experts(folder: Path) -> float:
    """Share of the weights of the architecture in `folder` that are in parameters of three dimensions or more."""
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):  # not from_config: under ZeRO-3 that would share out weights that are none
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    sizes = [(weight.dim(), weight.numel()) for weight in model.parameters()]
    return sum(size for dimensions, size in sizes if dimensions > 2) / sum(size for _, size in sizes)


STORED = re.compile(r"^(.+)\.(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(w1|w2|w3|gate_proj|up_proj|down_proj)\.weight$")
"""How files name the matrices of an expert: layer, expert, part."""
PARTS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
Maker = Callable[[], "torch.Tensor"]


def as_parameters(makers: Mapping[str, Maker]) -> dict[str, Maker]:
    """Makers of tensors by the names in files -> makers by the names of parameters: the experts of a layer become one.

    gate_up_proj is [experts, 2 x width, hidden], gate over up; down_proj is [experts, hidden, width].
    """
    found, layers = {}, defaultdict(dict)
    for name, make in makers.items():
        match = STORED.match(name)
        if match:
            layers[match[1]][int(match[2]), PARTS.get(match[3], match[3])] = make
        else:
            found[name.replace(".block_sparse_moe.", ".mlp.")] = make
    for layer, parts in layers.items():
        count = 1 + max(expert for expert, _ in parts)
        found[f"{layer}.mlp.experts.gate_up_proj"] = partial(_stacked, parts, count, ("gate_proj", "up_proj"))
        found[f"{layer}.mlp.experts.down_proj"] = partial(_stacked, parts, count, ("down_proj",))
    return found


def _stacked(parts: dict[tuple[int, str], Maker], count: int, names: tuple[str, ...]) -> torch.Tensor:
    import torch

    return torch.stack([torch.cat([parts[expert, name]() for name in names]) for expert in range(count)])
