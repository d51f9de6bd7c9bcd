"""A recipe opened on this machine: its stages, its results so far, its lock."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunestation import settings as machine_settings
from tunestation.errors import InputError
from tunestation.pipeline import lock as locks
from tunestation.pipeline import machine
from tunestation.pipeline.digest import Digests
from tunestation.pipeline.files import read_json, write_json
from tunestation.pipeline.run import unwritable
from tunestation.pipeline.shelf import Shelf
from tunestation.pipeline.stage import Stage, keys
from tunestation.pipeline.volumes import Volumes
from tunestation.pipeline.workers import Workers
from tunestation.recipe import loading
from tunestation.recipe.schema import Recipe
from tunestation.recipe.sources import UrlSource
from tunestation.settings import Settings
from tunestation.stages import build_stages
from tunestation.stages.inputs import Inputs, Pinned, look, pin_name, unpinned_sources


@dataclass(frozen=True)
class Work:
    """Everything that a task needs to know of a recipe."""

    path: Path
    loaded: loading.Loaded
    settings: Settings
    shelf: Shelf
    lock: dict
    pins: dict[str, str]
    inputs: Inputs
    stages: list[Stage]
    assignments: tuple[str, ...] = ()
    """What `--set` changed of the recipe."""

    @property
    def overridden(self) -> bool:
        """Whether `--set` changed the recipe: its results are then no reproduction of the lock."""
        return bool(self.assignments)

    def command(self, task: str) -> str:
        """What a user types to do `task` with this very recipe."""
        name = self.recipe.name if self.path.absolute().parent == self.settings.recipes else shlex.quote(str(self.path))
        return " ".join([f"invoke {task} {name}", *(f"--set {shlex.quote(assignment)}" for assignment in self.assignments)])

    @property
    def recipe(self) -> Recipe:
        """The recipe itself."""
        return self.loaded.recipe

    @property
    def processes(self) -> int:
        """Training processes on this machine: TUNE_PROCESSES, else as many of its GPUs as can share a step's batch evenly."""
        micro_batches = self.recipe.train.global_batch_size // self.recipe.runtime.micro_batch_size // self.settings.nodes
        count = len(machine.gpus())
        return self.settings.processes or next((some for some in range(count, 1, -1) if micro_batches % some == 0), 1)

    @property
    def workers(self) -> Workers:
        """The training processes of this machine and of those that train with it."""
        here = self.settings
        return Workers(self.processes, here.nodes, here.node, here.host, here.port)

    @property
    def runtime(self) -> dict:
        """How this machine does the work; in no key."""
        return self.recipe.runtime.model_dump() | {"offline": self.settings.offline}

    @property
    def lock_path(self) -> Path:
        """The lock beside the recipe."""
        return locks.path_of(self.path)

    def until(self, last: str | None) -> list[Stage]:
        """The stages up to `last`, all without it."""
        names = [stage.name for stage in self.stages]
        if last and last not in names:
            raise InputError(f"there is no stage '{last}' in this recipe.", "--until", f"Choose from: {', '.join(names)}.")
        return self.stages[: names.index(last) + 1] if last else self.stages

    def records(self, stages: Sequence[Stage] | None = None) -> dict[str, dict]:
        """Stage name -> record, of those that are done with today's keys."""
        found = keys(self.stages)
        records = {stage.name: self.shelf.record(stage.name, found[stage.name]) for stage in stages or self.stages}
        return {name: record for name, record in records.items() if record}

    def folder(self, stage: str) -> Path | None:
        """The finished result of `stage`; None if there is none."""
        folder = self.shelf.published(stage, keys(self.stages)[stage])
        return folder if (folder / "stage.json").is_file() else None


def open_recipe(name: str, assignments: Iterable[str] = (), offline: bool = False, incomplete: bool = False) -> Work:
    """Open the recipe `name` (a path or bare name), with `--set` assignments. Raises InputError with all its problems.

    `incomplete` leaves files and folders that are not there to the caller, in `inputs.problems`.
    """
    settings = machine_settings.load()
    settings = replace(settings, offline=settings.offline or offline)
    path = loading.find(name, settings.recipes)
    assignments = tuple(assignments)
    loaded = loading.load(path, assignments)
    cache = settings.own(settings.cache)
    volumes = Volumes(settings.models, settings.datasets, path.absolute().parent, cache)
    try:
        shelf = Shelf(settings.own(settings.runs / loaded.recipe.name), Digests(cache), volumes)
    except OSError as error:
        raise unwritable(cache, error) from None
    lock = locks.read(locks.path_of(path))
    pins = _remembered(shelf) | lock.get("resolved", {})
    work = _with_pins(path, loaded, settings, shelf, lock, pins, assignments)
    if work.inputs.problems and not incomplete:
        raise InputError(problems=work.inputs.problems)
    return work


def _with_pins(path, loaded, settings, shelf, lock, pins, assignments) -> Work:
    inputs = look(loaded.recipe, loaded.document.where, pins, shelf.volumes, shelf.digests)
    stages = build_stages(loaded.recipe, inputs)
    return Work(path, loaded, settings, shelf, lock, pins, inputs, stages, assignments)


def _remembered(shelf: Shelf) -> dict[str, str]:
    path = shelf.folder / "pins.json"
    try:
        return read_json(path) if path.is_file() else {}
    except ValueError:
        return {}  # somebody damaged it: the network is asked again


def pin(work: Work, again: bool = False) -> Work:
    """Ask the network for the commits and digests that are not known yet (all of them with `again`) and remember them."""
    machine_settings.without_telemetry()
    wanted = [source for source in unpinned_sources(work.recipe) if again or pin_name(source) not in work.pins]
    if not wanted:
        return work
    if work.settings.offline:
        names = ", ".join(pin_name(source) for source in wanted)
        remedy = "Asking wants a network: unset TUNE_OFFLINE." if again else f"Run 'invoke pin {work.recipe.name}' once with a network."
        raise InputError(f"what {names} stands for is not known yet.", remedy=remedy)
    found = {pin_name(source): _resolved(source, work.shelf.volumes) for source in wanted}
    work.shelf.folder.mkdir(parents=True, exist_ok=True)
    write_json(work.shelf.folder / "pins.json", work.pins | found)
    return _with_pins(work.path, work.loaded, work.settings, work.shelf, work.lock, work.pins | found, work.assignments)


def _resolved(source: Pinned, volumes: Volumes) -> str:
    """The commit of a repository, or the digest of a file from the web, which is fetched for that."""
    if isinstance(source, UrlSource):
        from tunestation.fetching.download import fetch_unknown_url
        from tunestation.stages.fetch import url_path

        return fetch_unknown_url(source.url, lambda sha256: volumes.datasets / url_path(source.url, sha256))
    from tunestation.fetching.hubs import resolve

    return resolve(source.hub, pin_name(source).split()[0], source.repo, source.revision)
