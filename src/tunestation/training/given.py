"""An adapter that was trained before, here or elsewhere, and that a recipe begins with."""

from __future__ import annotations

import shutil
from pathlib import Path

from tunestation.errors import InputError, Problem, TunestationError
from tunestation.export.adapter import CONFIG, REMEDY, WEIGHTS, Adapter, check
from tunestation.models.architecture import ties_head
from tunestation.models.names import HEAD
from tunestation.models.shards import Shards
from tunestation.pipeline.job import Result
from tunestation.settings import local_rank
from tunestation.training.checkpoints import SAVING, Stamp, seal


def refuse_misfit(adapter: Path, base: Path) -> None:
    """Raise InputError unless every tensor of the adapter fits the base and none is missing: peft would train those from nothing."""
    weights = Shards(base)
    try:
        check(Adapter(adapter), weights, ties_head(base) and HEAD not in weights)
    except TunestationError as error:
        found = [_told(problem, adapter) for problem in error.problems]
        raise InputError(problems=found) from None


def _told(problem: Problem, adapter: Path) -> Problem:
    return Problem(problem.what, str(adapter), problem.remedy.replace(REMEDY, "Name the model that it was trained on."))


def as_it_is(adapter: Path, folder: Path) -> Result:
    """The adapter becomes the one checkpoint below `folder`, of step 0; nothing learns."""
    if local_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        saved = folder / SAVING / "checkpoint-0"
        saved.mkdir(parents=True)
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(adapter / name, saved / name)
        seal(saved.parent, folder, Stamp(0, 1, 1, 0, None))
    print(f"  {adapter.name} stays as it is: train.epochs is 0", flush=True)
    return Result(facts={"steps": 0, "trained_tokens": 0, "visits_left_out": 0}, observed={"samples": {}})
