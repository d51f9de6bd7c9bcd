"""Models out of XTuner's full fine-tunings: all weights of a checkpoint beside the tokenizer and the configuration of their base.

The weights are streamed under the names that they were trained with, and then take the way of every fetched model: families that
transformers does not carry are converted.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import torch

from tunestation.errors import InputError
from tunestation.export import xtuner
from tunestation.export.scratch import beside
from tunestation.fetching.place import Place, check_space
from tunestation.models.architecture import misfits, shapes_of, ties_head
from tunestation.models.folder import is_weight, model_files
from tunestation.models.limits import RECORD
from tunestation.models.names import HEAD
from tunestation.models.native.clean import BUFFERS, can_link
from tunestation.models.native.convert import SHARD, convert
from tunestation.models.native.registry import family_of
from tunestation.models.shards import Planned, write_shards
from tunestation.pipeline.files import read_json, write_json


class Weights:
    """The weights of a checkpoint in `dtype`; what was read is forgotten by opening the checkpoint again."""

    def __init__(self, path: Path, dtype: torch.dtype):
        self._path, self._dtype, self._found = path, dtype, xtuner.read(path).weights

    def planned(self, tied: bool) -> list[Planned]:
        """What is going to be written: without buffers of old versions, and without a head that is the embedding."""
        kept = [name for name in self._found if not name.endswith(BUFFERS) and not (tied and name == HEAD)]
        return [Planned(name, self._cast(self._found[name].meta), partial(self._load, name)) for name in kept]

    def _load(self, name: str) -> torch.Tensor:
        if self._found is None:
            self._found = xtuner.read(self._path).weights
        weight = self._cast(self._found[name].load())
        if not weight.isfinite().all():
            raise InputError(f"the weight {name} is not finite.", str(self._path), "Use an earlier checkpoint.")
        return weight

    def _cast(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.to(self._dtype) if weight.is_floating_point() else weight

    def release(self) -> None:
        """Let go of the files; opening them again takes milliseconds."""
        self._found = None


def import_model(path: Path, model: Path, output: Path) -> int:
    """Write the full fine-tuning of `path`, whose base is the folder `model`, as the model folder `output`; returns its weights.

    Raises InputError for weights that the base's configuration does not ask for or that are missing, TunestationError for a full disk.
    """
    record = read_json(model / RECORD) if (model / RECORD).is_file() else None
    config = record["config"] if record else read_json(model / "config.json")
    dtype = getattr(torch, config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    weights = Weights(path, dtype)
    family = family_of(config)
    tied = family is None and ties_head(model)
    planned = weights.planned(tied)
    if not family:
        _refuse_misfits(planned, tied, model, path)
    with beside(output) as scratch:
        _check_space(planned, family is not None, output)
        source, made = scratch / "source", scratch / output.name
        source.mkdir()
        _copy_small(model, source)
        write_json(source / "config.json", config)
        write_shards(planned, source, SHARD, weights.release, hashed=False)
        convert(source, made, {}, str(path))
        made.rename(output)
    return sum(one.meta.numel() for one in planned)


def _check_space(planned: list[Planned], rewritten: bool, output: Path) -> None:
    """Raise TunestationError unless the disk takes all weights, and, where they are `rewritten` or copied, those that they become."""
    copies = 2 if rewritten or not can_link(output.parent) else 1
    check_space(output.name, copies * sum(one.meta.nbytes for one in planned), Place(output, "TUNE_MODELS"))


def _copy_small(model: Path, source: Path) -> None:
    """Tokenizer, templates and licences of the base."""
    for file in model_files(model):
        if not is_weight(file.name) and not file.name.endswith(".index.json") and file.name != RECORD:
            shutil.copyfile(file, source / file.name)


def _refuse_misfits(planned: list[Planned], tied: bool, model: Path, path: Path) -> None:
    """Compare with what transformers is going to look for; the conversion of a family does so itself."""
    wanted = {name: shape for name, shape in shapes_of(model).items() if not (tied and name == HEAD)}
    if problems := misfits(wanted, planned, str(path), "Give the model that it was trained from."):
        raise InputError(problems=problems)
