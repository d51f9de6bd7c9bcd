"""Runs a plan: one child process a stage, results published by one rename, one run of a recipe at a time."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from tunestation.errors import InputError, Interrupted, TunestationError
from tunestation.pipeline import machine
from tunestation.pipeline.digest import RECORD, write_sums
from tunestation.pipeline.files import read_json, write_json
from tunestation.pipeline.job import Job
from tunestation.pipeline.meeting import agree
from tunestation.pipeline.plan import Step, decide
from tunestation.pipeline.process import run_child
from tunestation.pipeline.shelf import Shelf
from tunestation.pipeline.stage import Stage, keys, tool_versions
from tunestation.pipeline.workers import Workers

Outcome = Literal["skipped", "new", "byte-equal", "other bytes", "lent"]


@dataclass(frozen=True)
class Done:
    """What became of one stage."""

    step: Step
    outcome: Outcome
    """`byte-equal` and `other bytes` compare with the result that this key had before; `lent`: node 0 has the result."""
    seconds: float
    folder: Path


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a recipe's run folder. Raises TunestationError if another run holds it or it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        what, remedy = f"another run of this recipe is going on in {folder}.", "Wait for it, or stop it first."
        raise TunestationError(what, remedy=remedy) from None
    except OSError as error:
        raise unwritable(folder, error) from None
    try:
        yield
    finally:
        lock.release()


def busy(folder: Path) -> bool:
    """Whether a run of the recipe with this run folder is going on; nothing is written for it."""
    if not (folder / ".lock").is_file():
        return False
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # nobody can run it where nobody can write
        return False


def unwritable(folder: Path, error: OSError) -> TunestationError:
    """The message for a run volume that takes no files."""
    what = f"nothing can be written to {folder} ({error.strerror})."
    return TunestationError(what, remedy="Make the folder writable, free some space, or point TUNE_HOME (TUNE_RUNS, TUNE_CACHE) elsewhere.")


def run(stages: Sequence[Stage], shelf: Shelf, runtime: dict, workers: Workers, forced: Sequence[str] = ()) -> Iterator[Done]:
    """Run what has to run, stage by stage; each is decided when its turn comes, after the ones it needs.

    Several nodes each fetch and prepare for themselves, and meet before a distributed stage; what follows it is for node 0 alone.
    """
    found, made = keys(stages), []
    _sweep(stages, shelf)
    for stage in _share(stages, workers):
        with _standing(stage.name, made):
            done = _done(stage, found, shelf, runtime, workers, stage.name in forced)
        made += [stage.name] * (done.outcome != "skipped")
        yield done


@contextmanager
def _standing(stage: str, made: list[str]) -> Iterator[None]:
    """Wrong input that `stage` finds stops the run behind the stages that it has `made`."""
    try:
        yield
    except InputError as error:
        error.standing = f"{stage} did not finish" + (f", what {' and '.join(made)} made is kept" if made else "")
        raise


def _done(stage: Stage, found: dict[str, str], shelf: Shelf, runtime: dict, workers: Workers, forced: bool) -> Done:
    step = decide(stage, found, shelf, forced)
    if stage.distributed and workers.nodes > 1:
        step = agree(step, found, shelf, workers)
    start = time.monotonic()
    if step.action == "skip":
        return Done(step, "skipped", 0.0, shelf.published(stage.name, step.key))
    print(f"\n[{stage.name}] {step.action}: {step.reason}", flush=True)
    try:
        return _run_step(step, found, shelf, runtime, workers, start)
    except Interrupted as error:
        raise _without_force(error) if forced else error from None


def _without_force(error: Interrupted) -> Interrupted:
    """With it the same command would begin anew."""
    found = ("The same command", "The same command without --force")
    return Interrupted(problems=[replace(problem, remedy=problem.remedy.replace(*found)) for problem in error.problems])


def _sweep(stages: Sequence[Stage], shelf: Shelf) -> None:
    """Also what belongs to other keys, which may never come again; what a stage can go on from waits for its key."""
    try:
        left = shelf.sweep(stage.name for stage in stages if not stage.resumes)
    except OSError as error:
        raise unwritable(shelf.folder, error) from None
    if left:
        print(f"removed what interrupted runs left: {', '.join(left)}", flush=True)


def _share(stages: Sequence[Stage], workers: Workers) -> Sequence[Stage]:
    """What of `stages` this node does: node 0 all, another one those up to the last that all do together, if there is one."""
    together = [index for index, stage in enumerate(stages) if stage.distributed]
    return stages[: together[-1] + 1] if workers.node and together else stages


def _run_step(step: Step, found: dict[str, str], shelf: Shelf, runtime: dict, workers: Workers, start: float) -> Done:
    stage, before = step.stage, shelf.outputs(step.stage.name, step.key)
    partial = shelf.partial(stage.name, step.key)
    try:
        if step.action == "run":
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        result = _call(step, found, shelf, runtime, workers)
        if stage.distributed and workers.node:
            shutil.rmtree(partial)  # its share of the checkpoints, of no use without node 0's
            return Done(step, "lent", time.monotonic() - start, partial)
        outputs = write_sums(partial, stage.unchecked)
        write_json(partial / RECORD, _record(step, found, shelf, result, outputs, time.monotonic() - start, workers))
        folder = shelf.publish(stage.name, step.key)
    except OSError as error:
        raise unwritable(shelf.folder, error) from None
    outcome: Outcome = "new" if before is None else "byte-equal" if before == outputs else "other bytes"
    return Done(step, outcome, time.monotonic() - start, folder)


def _call(step: Step, found: dict[str, str], shelf: Shelf, runtime: dict, workers: Workers) -> dict:
    stage = step.stage
    job = Job(
        stage=stage.name,
        function=stage.function,
        params=stage.params,
        needs={name: shelf.published(name, found[name]) for name in stage.needs},
        output=shelf.partial(stage.name, step.key),
        volumes=shelf.volumes,
        machine=runtime | {"logs": str(shelf.logs(stage.name, step.key))},
    )
    return run_child(stage, job, shelf.logs(stage.name, step.key), shelf.volumes.cache, workers)


def _record(step: Step, found: dict[str, str], shelf: Shelf, result: dict, outputs: str, seconds: float, workers: Workers) -> dict:
    stage = step.stage
    return {
        "stage": stage.name,
        "key": step.key,
        "params": stage.params,
        "tools": tool_versions(stage.tools),
        "needs": {name: shelf.outputs(name, found[name]) for name in stage.needs},
        "outputs": outputs,
        **result,
        "seconds": round(seconds, 1),
        "finished": time.time(),
        "machine": machine.describe(workers),
    }


def read_record(folder: Path) -> dict:
    """The record of a published folder."""
    return read_json(folder / RECORD)
