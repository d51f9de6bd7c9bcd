"""What a PEFT LoRA adapter changes in the weights of its base: which tensors, and how. No model is built."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from tunestation.errors import Problem, TunestationError
from tunestation.export.patterns import bad_patterns
from tunestation.models.names import HEAD, embedding_of
from tunestation.models.shards import Piece, Shards

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
KINDS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_embedding_A": "embedding_A",
    "lora_embedding_B": "embedding_B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "token_adapter.trainable_tokens_delta": "rows",
}
"""End of a tensor's name -> its part in the change. Anything else takes the place of a whole weight (`modules_to_save`, biases)."""
UNSUPPORTED = (
    "fan_in_fan_out",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "alora_invocation_tokens",
    "kasa_config",
    "monteclora_config",
)
"""Options of peft that change more than W + scale x B A."""
STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Kinds of `init_lora_weights` with which peft changes the weights of the base before training: the adapter is for those, not for ours."""
REMEDY = "Convert again from the checkpoint (--force), or use the base that the adapter was trained on."


@dataclass
class Change:
    """What happens to one weight of the base."""

    parts: dict[str, str] = field(default_factory=dict)
    """Part (see KINDS, or `whole`) -> name of the adapter's tensor."""
    scale: float = 1.0
    """alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv 2312.03732)."""
    rows: list[int] = field(default_factory=list)
    """Ids of trained tokens, in the order of the part `rows`."""


class Adapter:
    """An adapter folder: its configuration and tensors, sorted by the weight of the base that each changes."""

    def __init__(self, folder: Path):
        """Raises TunestationError for what is no LoRA adapter, and for options that a merge cannot express."""
        self.folder = folder
        self.config = _config_of(folder)
        self.tensors = Shards(folder / WEIGHTS)
        self.changes: dict[str, Change] = {}
        for name in self.tensors.names:
            target, part = split_name(name)
            self.changes.setdefault(target, Change()).parts[part] = name
        for target, change in self.changes.items():
            self._describe(target.removesuffix(".weight"), change)

    def _describe(self, module: str, change: Change) -> None:
        down = change.parts.get("A") or change.parts.get("embedding_A")
        if down:
            alphas = self.config.alpha_pattern
            alpha = alphas.get(get_pattern_key(alphas.keys(), module), self.config.lora_alpha)
            rank = max([1, *self.tensors.meta(down).shape[:1]])  # `check` refuses a rank of 0
            change.scale = alpha / (rank**0.5 if self.config.use_rslora else rank)
        if "rows" in change.parts:
            indices = self.config.trainable_token_indices
            named = indices if isinstance(indices, dict) else {"": indices or []}
            change.rows = next((ids for name, ids in named.items() if module.endswith(name)), [])

    def expected(self, weights: Iterable[str], matrices: set[str]) -> list[str]:
        """Those of `weights` (`<module>.weight`) that the configuration adapts, if they are `matrices`, or trains whole."""
        whole = tuple(self.config.modules_to_save or ())
        modules = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
        adapted = [name for name in modules if f"{name}.weight" in matrices and check_target_module_exists(self.config, name)]
        return [*adapted, *(name for name in modules if whole and name.endswith(whole))]


def _config_of(folder: Path) -> LoraConfig:
    remedy = "Name the folder of a LoRA adapter that peft wrote."
    try:
        config = LoraConfig.from_pretrained(str(folder), local_files_only=True)
        bad = bad_patterns(config.to_dict())
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TunestationError(f"{CONFIG} cannot be read: {str(error).splitlines()[0]}", str(folder), remedy) from None
    if not isinstance(config, LoraConfig):
        raise TunestationError(f"{CONFIG} describes {config.peft_type.value}, which is no LoRA adapter.", str(folder), remedy)
    if bad:
        raise TunestationError(f"{CONFIG}: {'; '.join(bad)}.", str(folder), "Correct it there, or save the adapter again.")
    if not config.target_modules:
        raise TunestationError(f"{CONFIG} names no target_modules: nobody can tell whether the adapter is whole.", str(folder), remedy)
    used = [name for name in UNSUPPORTED if getattr(config, name, None)]
    used += [f"init_lora_weights '{start}'" for start in STARTS if str(config.init_lora_weights).startswith(start)]
    if used:
        what = f"the adapter uses {', '.join(used)}, which cannot be merged into plain weights."
        raise TunestationError(what, str(folder), "Serve it as base + adapter with peft.")
    return config


def split_name(name: str) -> tuple[str, str]:
    """`base_model.model.model.layers.0.mlp.up_proj.lora_A.weight` -> (`model.layers.0.mlp.up_proj.weight`, `A`)."""
    short = re.sub(r"\.(default|modules_to_save|(token_adapter\.)?base_layer|original_module)(?=\.|$)", "", name.removeprefix(PREFIX))
    for ending, part in KINDS.items():
        if short.endswith(f".{ending}"):
            return f"{short.removesuffix(ending)}weight", part
    return short, "whole"


def file_name(name: str) -> str:
    """How peft calls a parameter of an adapted model in adapter_model.safetensors."""
    return re.sub(r"\.(default|modules_to_save)(?=\.|$)", "", name).replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def check(adapter: Adapter, base: Shards, tied: bool) -> None:
    """Whether every change fits a weight of the base, and no module that the adapter names is without one; else raises, naming all."""
    known = {*base.names, *([HEAD] if tied else [])}
    problems = [problem for target, change in adapter.changes.items() for problem in _misfits(adapter, base, known, target, change)]
    matrices = {name for name in known if name not in base.names or base.meta(name).ndim == 2}
    missing = [name for name in adapter.expected(sorted(known), matrices) if f"{name}.weight" not in adapter.changes]
    if adapter.config.trainable_token_indices and not any(change.rows for change in adapter.changes.values()):
        missing.append("the trained rows of the embedding")
    if missing:
        what = f"{len(missing)} modules that the adapter should change are missing, first {missing[0]}: the merge would be partial."
        problems.append(Problem(what, str(adapter.folder), REMEDY))
    if problems:
        raise TunestationError(problems=problems)


def _misfits(adapter: Adapter, base: Shards, known: set[str], target: str, change: Change) -> list[Problem]:
    where = str(adapter.folder)
    if target not in known:
        return [Problem(f"{target.removesuffix('.weight')} is adapted, but the base has no such module.", where, REMEDY)]
    wanted = tuple(base.meta(target if target in base.names else embedding_of(base.names)).shape)
    found, lacking = _shape(adapter, change)
    if lacking:
        return [Problem(f"{target.removesuffix('.weight')}: {lacking} is missing.", where, REMEDY)]
    if "rows" in change.parts and not _names_every_row(adapter, change, wanted[0]):
        what = f"{target}: trainable_token_indices in {CONFIG} do not name a token of {wanted[0]} for each of its trained rows."
        return [Problem(what, where, REMEDY)]
    if found != (wanted[1:] if "rows" in change.parts else wanted):
        what = f"{target}: the adapter was made for {list(found)}, but the base has {list(wanted)}."
        return [Problem(what, where, REMEDY)]
    return []


def _names_every_row(adapter: Adapter, change: Change, vocabulary: int) -> bool:
    count = len(adapter.tensors.meta(change.parts["rows"]))
    return len(change.rows) == count and all(0 <= token < vocabulary for token in change.rows)


def _shape(adapter: Adapter, change: Change) -> tuple[tuple[int, ...], str]:
    """(shape of the weight that the change is made for, or its last axes; the part that is missing)."""
    parts = change.parts
    shapes = {part: tuple(adapter.tensors.meta(name).shape) for part, name in parts.items()}
    if "whole" in parts:
        return shapes["whole"], ""
    if "rows" in parts:
        return shapes["rows"][1:], ""
    embedding = "embedding_" if "embedding_A" in parts or "embedding_B" in parts else ""
    needed = [f"{embedding}A", f"{embedding}B", *(["magnitude"] if adapter.config.use_dora else [])]
    lacking = next((f"lora_{part}" for part in needed if part not in parts), "")
    if lacking:
        return (), lacking
    down, up = shapes[f"{embedding}A"], shapes[f"{embedding}B"]
    if len(down) != 2 or len(up) != 2 or not down[0]:
        return (), "a pair of matrices of rank 1 or more"
    if up[1] != down[0]:
        return (), f"a lora_B of rank {down[0]}"
    if "magnitude" in parts and not adapter.config.use_dora:
        return (), f"use_dora in {CONFIG}"
    if shapes.get("magnitude", up[:1]) != up[:1]:
        return (), f"a lora_magnitude_vector of {up[0]} numbers"
    return ((down[1], up[0]) if embedding else (up[0], down[1])), ""


def merged(weight: torch.Tensor, change: Change, tensors: Shards, dtype: torch.dtype) -> Iterator[Piece]:
    """`weight` (out, in) with the change, a few rows at a time, computed in float32 and rounded once to `dtype`.

    A piece raises ValueError when a value is not finite in `dtype`.
    """
    if "whole" in change.parts:
        return pieces(tensors.read(change.parts["whole"]), dtype)
    if "rows" in change.parts:
        whole = weight.to(dtype, copy=True)
        whole[change.rows] = tensors.read(change.parts["rows"]).to(dtype)
        return pieces(whole, dtype)
    return _low_rank(weight, change, tensors, dtype)


def pieces(weight: torch.Tensor, dtype: torch.dtype) -> Iterator[Piece]:
    """`weight` in `dtype`, a few rows at a time. A piece raises ValueError when a value is not finite in a new `dtype`."""
    yield from (partial(_cast, part, dtype) for part in (weight.split(_rows(weight)) if weight.ndim else [weight]))


def _cast(block: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return block if block.dtype == dtype else _rounded(block, dtype)


def _rounded(block: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    low, high = torch.aminmax(block)
    largest = torch.finfo(dtype).max
    if not (-largest <= low and high <= largest):  # a comparison with nan is false
        raise ValueError
    return block.to(dtype, copy=True)


def _rows(weight: torch.Tensor) -> int:
    """How many rows are worked on at once: 4 MB in float32 stay in the processor's cache."""
    return max(1, 2**20 * len(weight) // max(1, weight.numel()))


def _low_rank(weight: torch.Tensor, change: Change, tensors: Shards, dtype: torch.dtype) -> Iterator[Piece]:
    """W + scale x B A (arXiv 2106.09685), for DoRA times magnitude / norm (arXiv 2402.09353)."""
    up, down = _factors(change, tensors)
    some = _rows(weight)
    parts = list(zip(weight.split(some), up.split(some), strict=True))

    def updated(rows: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return _scratch(rows.shape).copy_(rows).addmm_(factor, down, alpha=change.scale)

    if "magnitude" not in change.parts:
        yield from (lambda part=part: _rounded(updated(*part), dtype) for part in parts)
        return
    magnitude = tensors.read(change.parts["magnitude"]).float()
    if "embedding_A" in change.parts:  # peft takes the norms of an embedding by column, of a layer by row
        columns = magnitude / sum(updated(*part).square().sum(0) for part in parts).sqrt()
        yield from (lambda part=part: _rounded(updated(*part) * columns, dtype) for part in parts)
        return
    for part, lengths in zip(parts, magnitude.split(some), strict=True):
        yield lambda part=part, lengths=lengths: _rounded(_of_length(updated(*part), lengths), dtype)


_own = threading.local()


def _scratch(shape: torch.Size) -> torch.Tensor:
    """Memory in float32 that the calling thread uses again and again: the system would clear every page of new memory first."""
    if not hasattr(_own, "scratch") or _own.scratch.numel() < shape.numel():
        _own.scratch = torch.empty(shape.numel())
    return _own.scratch[: shape.numel()].view(shape)


def _of_length(rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return rows.mul_((lengths / rows.norm(dim=1))[:, None])


def _factors(change: Change, tensors: Shards) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, rank) and (rank, in) in float32, whose product is the update."""
    if "A" in change.parts:
        return tensors.read(change.parts["B"]).float(), tensors.read(change.parts["A"]).float()
    return tensors.read(change.parts["embedding_A"]).float().T, tensors.read(change.parts["embedding_B"]).float().T
