"""Mixtures of experts: transformers 5 keeps all experts of a layer in one 3-d parameter, which bitsandbytes leaves in 16 bit."""

from __future__ import annotations

from pathlib import Path

from tunestation.errors import InputError, Problem

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
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    sizes = [(weight.dim(), weight.numel()) for weight in model.parameters()]
    return sum(size for dimensions, size in sizes if dimensions > 2) / sum(size for _, size in sizes)
