"""Two small stages and a place for their results."""

from dataclasses import asdict, replace
from pathlib import Path

import stages_for_tests

from tunestation.pipeline.digest import Digests
from tunestation.pipeline.job import Job
from tunestation.pipeline.plan import Step, plan
from tunestation.pipeline.run import Done, run
from tunestation.pipeline.shelf import Shelf
from tunestation.pipeline.stage import Stage
from tunestation.pipeline.volumes import Volumes
from tunestation.pipeline.workers import Workers


def stage(name: str, function: str = "write", needs: tuple[str, ...] = (), **params) -> Stage:
    """A stage whose function is one of stages_for_tests; all but `stop` can go on where they were interrupted."""
    return Stage(name, f"stages_for_tests:{function}", params, needs, graceful=function != "stop", resumes=function != "stop")


def beginning_anew(one: Stage) -> Stage:
    """The same stage, if it could not go on where it was interrupted."""
    return replace(one, graceful=False, resumes=False)


def here(stage: Stage, job: Job, logs: Path, cache: Path, workers: Workers) -> dict:
    """Runs a job as `run_child` does, but in this process: for tests of what was done, not of how."""
    logs.mkdir(parents=True, exist_ok=True)
    return asdict(getattr(stages_for_tests, stage.function.partition(":")[2])(stage.params, job))


class Line:
    """A run folder below `folder`; stages `one` and `two`, which needs it."""

    def __init__(self, folder: Path, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
        self.folder = folder
        self.volumes = Volumes(folder / "models", folder / "datasets", folder / "recipes", folder / "cache")
        for place in (self.volumes.models, self.volumes.datasets, self.volumes.recipe):
            place.mkdir(exist_ok=True)
        self.stages = [stage("one"), stage("two", needs=("one",), files={"b.txt": "b\n"})]

    @property
    def shelf(self) -> Shelf:
        """A new one, as a new process would have."""
        return Shelf(self.folder / "runs", Digests(self.volumes.cache), self.volumes)

    def run(self, *stages: Stage, forced: tuple[str, ...] = ()) -> list[Done]:
        """Run `stages`, or the two of this line."""
        return list(run(stages or self.stages, self.shelf, {"offline": True}, Workers(), forced))

    def plan(self, *stages: Stage, forced: bool = False) -> list[Step]:
        """What would run."""
        return plan(stages or self.stages, self.shelf, forced)

    def says(self, *stages: Stage, forced: bool = False) -> list[tuple[str, str]]:
        """Action and reason of each stage."""
        return [(step.action, step.reason) for step in self.plan(*stages, forced=forced)]
