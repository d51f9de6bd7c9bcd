"""`invoke inspect`: what a recipe's data becomes, told by a process of its own."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from tunestation.errors import InputError
from tunestation.fetching.manifest import model_of
from tunestation.pipeline.job import Job
from tunestation.pipeline.process import run_child
from tunestation.pipeline.run import alone
from tunestation.pipeline.stage import Stage
from tunestation.pipeline.workers import Workers
from tunestation.recipe.sources import StarterModel
from tunestation.stages.fetch import STARTER
from tunestation.work import Work


def inspect(work: Work, row: int | None, tokens: bool, tokenizer: str | None) -> None:
    """Show a row, or all numbers and a page to browse; prepares the data for a look where that was not done yet."""
    if tokenizer and not Path(tokenizer).is_dir():
        raise InputError(f"there is no folder '{tokenizer}'.", "--tokenizer", "Give one that holds a tokenizer's files.")
    stage = next(stage for stage in work.stages if stage.name == "prepare")
    needs = {name: folder for name in ("fetch", "prepare") if (folder := work.folder(name))}
    params = {
        "recipe": work.recipe.name,
        "prepare": stage.params,
        "row": row,
        "tokens": tokens,
        "tokenizer": str(Path(tokenizer).absolute()) if tokenizer else _tokenizer(work),
    }
    look = Stage("inspect", "tunestation.stages.inspect:run", params, variables=stage.variables)
    logs, output = work.shelf.folder / "logs" / "inspect", work.shelf.folder / "inspect"
    job = Job(look.name, look.function, params, needs, output, work.shelf.volumes, work.runtime | {"logs": str(logs)})
    with nullcontext() if "prepare" in needs else alone(work.shelf.folder):  # looking at a result disturbs no run
        run_child(look, job, logs, work.shelf.volumes.cache, Workers())


def _tokenizer(work: Work) -> str | None:
    """The model's folder, fetched or local; None if it is not on this machine or has no tokenizer yet."""
    fetch = work.folder("fetch")
    model = model_of(fetch) if fetch else None
    ref = model.ref if model else STARTER if isinstance(work.recipe.model.source, StarterModel) else work.inputs.model_ref
    return str(work.shelf.volumes.path(ref)) if ref else None
