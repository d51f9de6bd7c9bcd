"""What XTuner's checkpoints hold, a file of MMEngine or a folder of DeepSpeed shards, and adapters out of them.

Needs neither the weights of the base nor a GPU: only the base's config.json.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from tunestation.errors import InputError, Problem, TunestationError
from tunestation.export import pickles, zero
from tunestation.export.adapter import CONFIG, PREFIX, REMEDY, WEIGHTS, Adapter, check, file_name
from tunestation.export.report import describe
from tunestation.export.scratch import beside
from tunestation.models.limits import RECORD
from tunestation.models.native.lora import carry_over
from tunestation.models.native.registry import family_of
from tunestation.models.shards import Planned
from tunestation.pipeline.files import read_json, write_json

ALPHA = re.compile(r"""lora_alpha['"]?\s*[:=]\s*(\d+(?:\.\d+)?)""")
"""Where XTuner's configuration, which every checkpoint carries as text, sets alpha."""
RSLORA = re.compile(r"""use_rslora['"]?\s*[:=]\s*True""")
"""Where it says that alpha is divided by the root of the rank."""
DOWN = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?:embedding_)?A(?:\.|$)")
"""The first matrix of a module's pair: as long as the rank."""


@dataclass(frozen=True)
class Checkpoint:
    """What is used of an XTuner checkpoint."""

    weights: dict[str, Planned]
    """Name without XTuner's `llm.` -> weight, in the layout of the model that was trained; mapped from the files until it is loaded."""
    config: str
    """XTuner's configuration; empty if the checkpoint has none."""

    @property
    def is_adapter(self) -> bool:
        """Whether it is of LoRA, and not of a full fine-tuning."""
        return any(".lora_" in name for name in self.weights)


def read(path: Path) -> Checkpoint:
    """What is in `iter_N.pth` or `epoch_N.pth`, a file or a DeepSpeed folder. Raises InputError for anything else."""
    if path.is_dir():
        folder = zero.shard_folder(path)
        if folder is None:
            remedy = "Give iter_N.pth or epoch_N.pth, which is a file or a folder of *_states.pt."
            raise InputError("holds no checkpoint of DeepSpeed.", str(path), remedy)
        states, weights = zero.model_states(folder), zero.read(folder)
    elif path.is_file():
        states = pickles.load(path)
        if not isinstance(states, Mapping) or not _named_by_texts(states.get("state_dict")):
            raise InputError("is no checkpoint of XTuner: it has no state_dict.", str(path), "Give iter_N.pth or epoch_N.pth.")
        tensors = {name: weight for name, weight in states["state_dict"].items() if isinstance(weight, torch.Tensor)}
        weights = [Planned(name, tensor.to("meta"), partial(_same, tensor)) for name, tensor in tensors.items()]
    else:
        raise InputError("there is no such file or folder.", str(path), "Give iter_N.pth or epoch_N.pth of a work_dirs folder.")
    meta = states.get("meta")
    return Checkpoint(_named(weights, path), str(meta.get("cfg", "")) if isinstance(meta, Mapping) else "")


def _named_by_texts(state_dict: object) -> bool:
    return isinstance(state_dict, Mapping) and bool(state_dict) and all(isinstance(name, str) for name in state_dict)


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _named(weights: list[Planned], path: Path) -> dict[str, Planned]:
    others = sorted({one.name.partition(".")[0] for one in weights if not one.name.startswith(("llm.", PREFIX))})
    if others:
        what = f"holds more than a language model: {', '.join(others)}."
        raise InputError(what, str(path), "Only language models and their adapters can be imported.")
    return {one.name.removeprefix("llm."): one for one in weights}


def _adapter_tensors(found: Checkpoint, path: Path) -> dict[str, torch.Tensor]:
    """Name in adapter_model.safetensors -> weight."""
    named = {file_name(name): one.load() for name, one in found.weights.items()}
    bad = [name for name, weight in named.items() if not weight.isfinite().all()]
    if bad:
        raise InputError(f"{len(bad)} of {len(named)} weights are not finite, first {bad[0]}.", str(path), "Use an earlier checkpoint.")
    if not any(map(DOWN.match, named)):
        raise InputError("holds no lora_A.", str(path), "Copy it again, or use an earlier checkpoint.")
    return named


def import_adapter(found: Checkpoint, path: Path, model: Path, name: str, output: Path, alpha: float | None) -> dict:
    """Write the adapter that was `found` in `path` for the base in `model` (called `name`) into `output`; returns its report.

    Raises InputError if it belongs to another model, or if nothing says which alpha it was trained with.
    """
    config = read_json(model / "config.json")
    record = model / RECORD
    original = read_json(record)["config"] if record.is_file() else config
    family = family_of(original)
    tensors = _adapter_tensors(found, path)
    if family:
        tensors = carry_over(tensors, family, original).tensors
    with beside(output) as scratch:
        folder = scratch / output.name
        folder.mkdir()
        save_file({key: tensors[key].bfloat16().contiguous() for key in sorted(tensors)}, folder / WEIGHTS, metadata={"format": "pt"})
        write_json(folder / CONFIG, _config(tensors, _alpha(found.config, path, alpha), bool(RSLORA.search(found.config)), name))
        adapter = Adapter(folder)
        if record.is_file() or not family:
            _fits(adapter, model, path)
        report = describe(adapter)
        write_json(folder / "report.json", {"adapter": report, "imported_from": path.name, "base": {"name": name}})
        folder.rename(output)
    return report


def _alpha(config: str, path: Path, given: float | None) -> float:
    if given is not None:
        if not 0 < given < math.inf:
            raise InputError(f"is {given:g}, but alpha is above 0.", "--alpha", "Give that of the training; 16 is XTuner's default.")
        return given
    values = sorted({float(value) for value in ALPHA.findall(config)})
    if len(values) == 1:
        return values[0]
    said = f"sets lora_alpha to {' and '.join(f'{value:g}' for value in values)}" if values else "does not say which lora_alpha it had"
    raise InputError(f"the configuration in this checkpoint {said}.", str(path), "Give it: --alpha 16 is XTuner's default.")


def _config(tensors: dict[str, torch.Tensor], alpha: float, rslora: bool, name: str) -> dict:
    """adapter_config.json; ranks that differ from the usual one are named module by module."""
    ranks = {match["module"]: len(tensor) for key, tensor in tensors.items() if (match := DOWN.match(key))}
    kinds = {"use_rslora": rslora, "use_dora": any("lora_magnitude_vector" in key for key in tensors)}
    usual = max(sorted(set(ranks.values())), key=list(ranks.values()).count)
    whole = {key.removeprefix(PREFIX).rpartition(".")[0] for key in tensors if ".lora_" not in key}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "inference_mode": True,
        "r": usual,
        "rank_pattern": {module: rank for module, rank in sorted(ranks.items()) if rank != usual},
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({module.rpartition(".")[2] for module in ranks}),
        "modules_to_save": sorted({module.rpartition(".")[2] for module in whole}) or None,
        **{kind: True for kind, used in kinds.items() if used},
    }


class _Skeleton:
    """The shapes of a model without its weights, in the place of its files."""

    def __init__(self, model: Path):
        from tunestation.models.architecture import empty_model

        self._shapes = empty_model(model).state_dict()
        self.names = list(self._shapes)

    def meta(self, name: str) -> torch.Tensor:
        return self._shapes[name]


def _fits(adapter: Adapter, model: Path, path: Path) -> None:
    try:
        check(adapter, _Skeleton(model), tied=False)
    except TunestationError as error:
        fitting = "Give the model that it was trained on."
        found = [Problem(problem.what, str(path), problem.remedy.replace(REMEDY, fitting)) for problem in error.problems]
        raise InputError(problems=found) from None
