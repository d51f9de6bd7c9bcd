"""convert: picks a checkpoint and writes a clean PEFT adapter (or, after full training, clean weights)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tunestation.errors import TunestationError
from tunestation.fetching.manifest import FetchedModel, model_of
from tunestation.pipeline.files import read_json, write_json
from tunestation.pipeline.job import Job, Result
from tunestation.training import checkpoints

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def run(params: dict, job: Job) -> Result:
    """Write adapter_model.safetensors and adapter_config.json, or model.safetensors; all tensors finite, names sorted."""
    checkpoint = pick(job.needs["train"] / "checkpoints", params["checkpoint"])
    adapter = (checkpoint / ADAPTER_CONFIG).is_file()
    source = checkpoint / ADAPTER if adapter else checkpoint
    tensors = read_checked(source)
    save_file(tensors, job.output / (ADAPTER if adapter else "model.safetensors"), metadata={"format": "pt"})
    if adapter:
        write_json(job.output / ADAPTER_CONFIG, clean_config(read_json(checkpoint / ADAPTER_CONFIG), model_of(job.needs["fetch"])))
    else:
        write_json(job.output / "config.json", read_json(checkpoint / "config.json"))
    weights = sum(tensor.numel() for tensor in tensors.values())
    print(f"  {checkpoint.name}: {len(tensors)} tensors, {weights:,} weights, all finite", flush=True)
    return Result(facts={"checkpoint": checkpoint.name, "tensors": len(tensors), "weights": weights, "adapter": adapter})


def pick(folder: Path, which: str) -> Path:
    """The `last` or `best` complete checkpoint below `folder`."""
    every = checkpoints.complete(folder)
    if not every:
        raise TunestationError(f"there is no complete checkpoint in {folder}.", remedy="Train again: invoke train RECIPE --force")
    return checkpoints.best_of(every) if which == "best" else every[-1]


def read_checked(source: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, or of those in a folder, sorted by name. Raises if one is empty or not finite."""
    try:
        tensors = {name: tensor for file in _files(source) for name, tensor in _read(file).items()}
    except (OSError, SafetensorError) as error:
        raise TunestationError(f"the weights of the checkpoint cannot be read: {error}", str(source), "Train again with --force.") from None
    if not tensors:
        raise TunestationError("the checkpoint holds no weights.", str(source), "Train again with --force.")
    bad = [name for name, tensor in tensors.items() if tensor.numel() == 0 or not torch.isfinite(tensor).all()]
    if bad:
        what = f"{len(bad)} of {len(tensors)} tensors are empty or not finite, first {bad[0]}."
        raise TunestationError(what, str(source), "Lower train.learning_rate and train again.")
    return dict(sorted(tensors.items()))


def _files(source: Path) -> list[Path]:
    """The weight files that `source` should have: with an index, a missing one is noticed."""
    if source.suffix == ".safetensors":
        return [source]
    index = source / "model.safetensors.index.json"
    names = read_json(index)["weight_map"].values() if index.is_file() else ["model.safetensors"]
    return [source / name for name in sorted(set(names))]


def _read(file: Path) -> dict[str, torch.Tensor]:
    with safe_open(file, framework="pt") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  safe_open is no dict


def clean_config(config: dict, model: FetchedModel) -> dict:
    """The adapter's configuration with its base named by hub id and commit, and lists in one order."""
    lists = {name: sorted(value) for name, value in config.items() if isinstance(value, list)}
    return config | lists | {"base_model_name_or_path": model.name, "revision": model.commit, "inference_mode": True}
