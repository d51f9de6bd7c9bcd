"""A model whose weights are made when a layer needs them and forgotten after it: its forward pass needs memory for one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import init_empty_weights
from accelerate.hooks import attach_align_device_hook
from accelerate.utils import set_module_tensor_to_device
from peft import get_peft_model

from tunestation.errors import TunestationError
from tunestation.export.adapter import Adapter, split_name
from tunestation.export.merging import Rounding, as_stored
from tunestation.models.architecture import empty_model
from tunestation.models.experts import as_parameters
from tunestation.models.names import HEAD, embedding_of
from tunestation.models.shards import Shards

Maker = Callable[[], torch.Tensor]
"""Makes one weight."""


class Weights(Mapping):
    """Name of a parameter -> its value, made anew at every look."""

    def __init__(self, makers: Mapping[str, Maker], release: Callable[[], None]):
        self._makers, self._release = makers, release

    def __getitem__(self, name: str) -> torch.Tensor:
        value = self._makers[name]().to(torch.float32, copy=True)
        self._release()
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@dataclass(frozen=True)
class Source:
    """Where a model's weights come from."""

    makers: Mapping[str, Maker]
    """Name -> how to make the weight; a tied head is under its own name too."""
    release: Callable[[], None]
    """Forgets what was read from files."""


def stored(shards: Shards, rounding: Rounding = as_stored) -> Source:
    """The weights of a folder, as `rounding` leaves them. A head that has no weight of its own is the embedding."""

    def maker(name: str) -> Maker:
        return lambda: rounding(name, shards.read(name))

    makers = as_parameters({name: maker(name) for name in shards.names})
    embedding = embedding_of(makers)
    return Source({HEAD: makers[embedding]} | makers if embedding in makers else makers, shards.release)


def streamed(folder: Path, source: Source, device: torch.device) -> torch.nn.Module:
    """The model of `folder` with weights from `source`, one decoder layer at a time on `device`.

    Raises TunestationError for an architecture whose parameters have other names than the weights in its files.
    """
    model = empty_model(folder)
    unknown = [name for name, _ in model.named_parameters(remove_duplicate=False) if name not in source.makers]
    if unknown:
        what = f"{len(unknown)} weights of this {model.config.model_type} are not found under their names, first {unknown[0]}."
        raise TunestationError(what, str(folder), "The proof cannot run this architecture: choose a model of another.")
    weights = Weights(source.makers, source.release)
    attach_align_device_hook(model, device, offload=True, weights_map=weights, preload_module_classes=model._no_split_modules)
    return model


def adapted(folder: Path, base: Source, adapter: Adapter, device: torch.device) -> torch.nn.Module:
    """The same with the adapter beside it, as peft runs them."""
    model = empty_model(folder)
    # layers that adapters look into from outside have to be there as a whole
    whole = [*model._no_split_modules, "Linear", "Embedding", "TrainableTokensLayer"]
    with init_empty_weights(include_buffers=False):
        model = get_peft_model(model, adapter.config).eval()
    for name, buffer in model.named_buffers():
        if buffer.is_meta:  # a copy that peft keeps for taking an adapter off again
            set_module_tensor_to_device(model, name, device, value=torch.zeros(buffer.shape))
    makers = {name: _maker(name, base, adapter) for name, _ in model.named_parameters(remove_duplicate=False)}

    def release() -> None:
        base.release()
        adapter.tensors.release()

    attach_align_device_hook(model, device, offload=True, weights_map=Weights(makers, release), preload_module_classes=whole)
    return model


def _maker(name: str, base: Source, adapter: Adapter) -> Maker:
    """How to make the parameter that peft calls `name`."""
    target, part = split_name(name)
    change = adapter.changes.get(target)
    if change and part in change.parts:
        return partial(adapter.tensors.read, change.parts[part])
    if part == "whole":
        return base.makers[target]
    twin = adapter.changes[embedding_of(adapter.changes)]  # a head trained together with the embedding has no tensors of its own
    if part == "rows":
        return partial(adapter.tensors.read, twin.parts["rows"])
    other = twin.parts["embedding_B" if part == "A" else "embedding_A"]
    return lambda: adapter.tensors.read(other).T
