"""The model that a config.json describes, without its weights: which there have to be, and of which shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import tunestation.models.alibi  # noqa: F401  the Auto classes know Baichuan-13B then
from tunestation.errors import Problem, some
from tunestation.models.shards import Planned

Shape = tuple[int, ...]


def empty_model(folder: Path) -> PreTrainedModel:
    """The architecture that config.json describes, in float32 without weights; what it computes from the configuration is there."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def ties_head(folder: Path) -> bool:
    """Whether the head is the embedding; where config.json does not say, as that of older Gemma releases, its class does."""
    return AutoConfig.from_pretrained(folder, local_files_only=True).tie_word_embeddings


def shapes_of(folder: Path) -> dict[str, Shape]:
    """Name -> shape of every weight of the architecture that `folder`'s config.json describes."""
    return {name: tuple(weight.shape) for name, weight in empty_model(folder).state_dict().items()}


def misfits(wanted: Mapping[str, Shape], tensors: Iterable[Planned], where: str, remedy: str, torn: Mapping = {}) -> list[Problem]:
    """Names and shapes of `tensors` that are not the `wanted` ones.

    `torn` maps what is said of a tensor that could not be taken apart to the names of its parts, which are not missing then.
    """
    found = {one.name: tuple(one.meta.shape) for one in tensors}
    missing = wanted.keys() - found.keys() - set(chain(*torn.values()))
    both = sorted(wanted.keys() & found.keys())
    shapes = [f"{name} {list(found[name])} instead of {list(wanted[name])}" for name in both if found[name] != wanted[name]]
    wrong = {
        "fewer tensors than the configuration says; missing": sorted(missing),
        "more tensors than the configuration says": sorted(found.keys() - wanted.keys()),
        "tensors of another shape than the configuration says": [*torn, *shapes],
    }
    return [Problem(f"has {what}: {some(names)}.", where, remedy) for what, names in wrong.items() if names]
