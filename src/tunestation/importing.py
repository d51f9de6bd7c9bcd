"""Brings what other programs trained to the model volume."""

from __future__ import annotations

import logging
from pathlib import Path

from tunestation import settings as machine_settings
from tunestation.errors import InputError

ADAPTERS = "adapters"
"""Folder of imported adapters on the model volume."""


def import_xtuner(path: str, model: str, name: str = "", alpha: float | None = None) -> None:
    """Write the adapter of an XTuner checkpoint as PEFT reads it, and say what it holds."""
    settings = machine_settings.load()
    machine_settings.without_telemetry()
    source = Path(path).expanduser()
    base = next((folder for folder in (Path(model).expanduser(), settings.models / model) if (folder / "config.json").is_file()), None)
    if base is None:
        remedy = "Give the folder of the base model; its config.json is enough."
        raise InputError(f"there is no config.json in '{model}', nor below {settings.models} (TUNE_MODELS).", "--model", remedy)
    output = settings.models / ADAPTERS / (name or f"{source.absolute().parent.name}-{source.stem}")
    if output.exists():
        raise InputError("is there already.", str(output), "Give another --name, or remove it.")
    logging.disable(logging.WARNING)  # DeepSpeed, which accelerate imports, logs to standard output
    from tunestation.export.report import sentence
    from tunestation.export.xtuner import import_adapter

    report = import_adapter(source, base, model, output, alpha)
    print(sentence(report))
    if report["head"]:
        print("Note: the head of the model was adapted as well, as XTuner does for InternLM2, whose head is called 'output'.")
    print(f"The adapter: {output}")
