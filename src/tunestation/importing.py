"""Brings what other programs trained to the model volume."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from tunestation import settings as machine_settings
from tunestation.errors import InputError

if TYPE_CHECKING:
    from tunestation.export.xtuner import Checkpoint

ADAPTERS = "adapters"
"""Folder of imported adapters on the model volume."""


def import_xtuner(path: str, model: str, name: str = "", alpha: float | None = None) -> None:
    """Write the adapter of an XTuner checkpoint as PEFT reads it, or its full fine-tuning as a model folder, and say what it holds."""
    settings = machine_settings.load()
    machine_settings.without_telemetry()
    source = Path(path).expanduser()
    base = next((folder for folder in (Path(model).expanduser(), settings.models / model) if (folder / "config.json").is_file()), None)
    if base is None:
        remedy = "Give the folder of the base model; its config.json is enough for an adapter."
        raise InputError(f"there is no config.json in '{model}', nor below {settings.models} (TUNE_MODELS).", "--model", remedy)
    logging.disable(logging.WARNING)  # DeepSpeed, which accelerate imports, logs to standard output
    from tunestation.export.xtuner import read

    found = read(source)
    relative = Path(ADAPTERS if found.is_adapter else "", name or f"{source.absolute().parent.name}-{source.stem}")
    output = settings.models / relative
    if output.exists():
        raise InputError("is there already.", str(output), "Give another --name, or remove it.")
    if found.is_adapter:
        _adapter(found, source, base, model, output, alpha)
        print(f"In a recipe: model.adapter: {relative}; with train.epochs: 0 it is merged as it is.")
        print(f"The adapter: {output}")
    else:
        from tunestation.export.xtuner_model import import_model

        print(f"a full fine-tuning of {import_model(source, base, output):,} weights")
        print(f"In a recipe: model.source: {{kind: folder, path: {relative}}}")
        print(f"The model: {output}")


def _adapter(found: Checkpoint, source: Path, base: Path, model: str, output: Path, alpha: float | None) -> None:
    from tunestation.export.report import sentence
    from tunestation.export.xtuner import import_adapter

    report = import_adapter(found, source, base, model, output, alpha)
    print(sentence(report))
    if report["head"]:
        print("Note: the head of the model was adapted as well, as XTuner does for InternLM2, whose head is called 'output'.")
