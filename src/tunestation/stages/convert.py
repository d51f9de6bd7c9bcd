"""convert: picks a checkpoint and writes a clean PEFT adapter (or, after full training, clean weights)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tunestation.errors import TunestationError
from tunestation.export import zero
from tunestation.export.adapter import CONFIG, WEIGHTS, Adapter, file_name
from tunestation.export.report import describe, sentence
from tunestation.fetching.manifest import FetchedModel, model_of
from tunestation.models.names import HEAD
from tunestation.models.shards import Planned, Shards, weight_files, write_shards
from tunestation.pipeline.files import read_json, write_json
from tunestation.pipeline.job import Job, Result
from tunestation.training import checkpoints

REPORT = "report.json"
"""What the adapter holds, and the base it was trained on."""
SHARD_BYTES = 2 * 10**9
AGAIN = "Train again: invoke train RECIPE --force"


def run(params: dict, job: Job) -> Result:
    """Write an adapter with its report, or all weights; every tensor finite."""
    checkpoint = pick(job.needs["train"] / "checkpoints", params["checkpoint"])
    adapter = (checkpoint / CONFIG).is_file()
    facts = (_adapter if adapter else _weights)(checkpoint, job)
    print(f"  {checkpoint.name}: {facts['tensors']} tensors, {facts['weights']:,} weights, all finite", flush=True)
    return Result(facts={"checkpoint": checkpoint.name, "adapter": adapter} | facts)


def _adapter(checkpoint: Path, job: Job) -> dict:
    tensors = {one.name: one.load() for one in weights_of(checkpoint, adapter=True)}
    save_file(tensors, job.output / WEIGHTS, metadata={"format": "pt"})
    model = model_of(job.needs["fetch"])
    write_json(job.output / CONFIG, clean_config(read_json(checkpoint / CONFIG), model))
    found = describe(Adapter(job.output))
    write_json(job.output / REPORT, {"adapter": found, "base": {"name": model.name, "commit": model.commit, "files": model.files}})
    print(f"  {sentence(found)}", flush=True)
    if found["asked_for_in_vain"]:
        print(f"  warning: the model has no {', '.join(found['asked_for_in_vain'])} (train.lora.target_modules)", flush=True)
    return {"tensors": len(tensors), "weights": sum(tensor.numel() for tensor in tensors.values())}


def _weights(checkpoint: Path, job: Job) -> dict:
    config = read_json(checkpoint / "config.json")
    tied = config.get("tie_word_embeddings")  # the checkpoint then holds one weight under two names
    planned = [one for one in weights_of(checkpoint, adapter=False) if not (tied and one.name == HEAD)]
    write_shards(planned, job.output, SHARD_BYTES)
    write_json(job.output / "config.json", config)
    return {"tensors": len(planned), "weights": sum(tensor.meta.numel() for tensor in planned)}


def pick(folder: Path, which: str) -> Path:
    """The `last` or `best` complete checkpoint below `folder`."""
    every = checkpoints.complete(folder)
    if not every:
        raise TunestationError(f"there is no complete checkpoint in {folder}.", remedy=AGAIN)
    return checkpoints.best_of(every) if which == "best" else every[-1]


def weights_of(checkpoint: Path, adapter: bool) -> list[Planned]:
    """The weights that were trained, by name; each is checked to be finite when it is loaded. Raises if they cannot be read.

    A checkpoint under ZeRO-3 whose weights were not gathered holds only the shards of DeepSpeed.
    """
    files = [path for path in ([checkpoint / WEIGHTS] if adapter else weight_files(checkpoint)) if path.is_file() or not adapter]
    shards = zero.shard_folder(checkpoint)
    found = _stored(files, checkpoint) if files else _gathered(zero.read(shards), adapter) if shards else []
    if any(one.name.endswith(checkpoints.JOINED) for one in found):
        what = f"{WEIGHTS} is missing, and DeepSpeed's shards hold the adapters of a layer as one weight, in which they have no names."
        raise TunestationError(what, str(checkpoint), AGAIN)
    if not found:
        raise TunestationError("the checkpoint holds no weights.", str(checkpoint), AGAIN)
    return sorted((_checked(one, checkpoint) for one in found), key=lambda one: one.name)


def _stored(files: list[Path], checkpoint: Path) -> list[Planned]:
    try:
        for path in files:
            with safe_open(path, framework="pt"):
                pass  # the header agrees with the length of the file
    except (OSError, SafetensorError) as error:
        raise TunestationError(f"the weights of the checkpoint cannot be read: {error}", str(checkpoint), AGAIN) from None
    sources = [Shards(path) for path in files]
    return [Planned(name, shards.meta(name), partial(shards.read, name)) for shards in sources for name in shards.names]


def _gathered(trained: list[Planned], adapter: bool) -> list[Planned]:
    """In bfloat16, as training computes with them and saves them, and under the names that peft gives them in a file."""
    return [
        Planned(file_name(one.name) if adapter else one.name, one.meta.bfloat16(), partial(lambda load: load().bfloat16(), one.load))
        for one in trained
    ]


def _checked(one: Planned, checkpoint: Path) -> Planned:
    def load() -> torch.Tensor:
        tensor = one.load() if one.meta.numel() else None
        if tensor is None or not bool(tensor.isfinite().all()):
            what = f"the weight {one.name} is empty or not finite."
            raise TunestationError(what, str(checkpoint), "Lower train.learning_rate and train again.")
        return tensor

    return Planned(one.name, one.meta, load)


def clean_config(config: dict, model: FetchedModel) -> dict:
    """The adapter's configuration with its base named by hub id and commit, and lists in one order."""
    lists = {name: sorted(value) for name, value in config.items() if isinstance(value, list)}
    return config | lists | {"base_model_name_or_path": model.name, "revision": model.commit, "inference_mode": True}
