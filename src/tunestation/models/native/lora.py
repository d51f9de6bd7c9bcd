"""A LoRA adapter that was made for a family's own layout, carried over to our names. What it adds to the model is the same."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from tunestation.errors import InputError
from tunestation.models.native.family import Family, Line
from tunestation.models.native.tensors import take

NAME = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+?)\.lora_(?P<side>[AB])(?:\.default)?\.weight$")
"""base_model.model.model.layers.0.attention.wqkv.lora_A.weight, with or without peft's prefix and adapter name."""


@dataclass(frozen=True)
class Carried:
    """An adapter under our names."""

    tensors: dict[str, torch.Tensor]
    """As in adapter_model.safetensors: base_model.model.<module>.lora_A.weight [rank, in] and lora_B.weight [out, rank]."""
    target_modules: tuple[str, ...]
    """Last parts of our module names, for adapter_config.json."""


def carry_over(tensors: dict[str, torch.Tensor], family: Family, config: dict) -> Carried:
    """The adapter `tensors` of `family` (whose config.json is `config`) under our names.

    A packed matrix's lora_B loses its rows to the matrices it is unpacked into; each of them gets the same lora_A.
    Raises InputError for a module that the family's table does not know, and for an adapter of a head that was folded.
    """
    known = {line.theirs_of(n): (line, n) for line in family.table(config) for n in range(family.layers(config))}
    problems = [name for name in tensors if not _can(name, known)]
    if problems:
        what = f"{len(problems)} tensors of the adapter belong to no module of {family.name} that can be adapted, first {problems[0]}."
        raise InputError(what, "", "Give the model that the adapter was made for.")
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        match = NAME.match(name)
        line, layer = known[match["module"]]
        for part, ours in enumerate(line.ours_of(layer)):
            shared = match["side"] == "A" or line.rows is None
            found[f"base_model.model.{ours}.lora_{match['side']}.weight"] = tensor if shared else take(tensor, line.rows, part)
    modules = {name.removeprefix("base_model.model.").split(".lora_")[0].rpartition(".")[2] for name in found}
    return Carried({name: found[name].contiguous() for name in sorted(found)}, tuple(sorted(modules)))


def _can(name: str, known: dict[str, tuple[Line, int]]) -> bool:
    match = NAME.match(name)
    return match is not None and match["module"] in known and not known[match["module"]][0].change
