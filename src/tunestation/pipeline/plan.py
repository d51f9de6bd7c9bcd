"""Decides, without doing anything, what would run and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunestation.pipeline.shelf import Shelf
from tunestation.pipeline.stage import Stage, differences, keys, tool_versions

Action = Literal["run", "resume", "skip"]


@dataclass(frozen=True)
class Step:
    """What would happen to one stage."""

    stage: Stage
    key: str
    action: Action
    reason: str


def plan(stages: Sequence[Stage], shelf: Shelf, forced: bool = False) -> list[Step]:
    """One step a stage, in order. A stage behind one that would run is decided when its turn comes."""
    found = keys(stages)
    steps: list[Step] = []
    for stage in stages:
        waiting = [step.stage.name for step in steps if step.action != "skip" and step.stage.name in stage.needs]
        steps.append(decide(stage, found, shelf, forced, waiting))
    return steps


def decide(stage: Stage, found: dict[str, str], shelf: Shelf, forced: bool = False, waiting: Sequence[str] = ()) -> Step:
    """Run, resume or skip `stage` (keys of all stages in `found`), with the reason in words."""
    key = found[stage.name]
    record = shelf.record(stage.name, key)
    if forced:
        return Step(stage, key, "run", "forced")
    if stage.resumes and shelf.partial(stage.name, key).exists():
        return Step(stage, key, "resume", "was interrupted; goes on from what is complete")
    if record is None:
        damaged = shelf.published(stage.name, key).is_dir()
        return Step(stage, key, "run", "the record of its result is missing or damaged" if damaged else _never(stage, shelf))
    if waiting:
        return Step(stage, key, "run", f"waits for {', '.join(waiting)}; skipped if its result is the same")
    reason = _stale(stage, key, record, found, shelf)
    return Step(stage, key, "run", reason) if reason else Step(stage, key, "skip", "done before with the same inputs")


def _never(stage: Stage, shelf: Shelf) -> str:
    latest = shelf.latest_record(stage.name)
    changed = differences(latest["params"], stage.params) if latest else []
    changed += differences(latest["tools"], tool_versions(stage.tools)) if latest else []
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        return f"settings changed ({'; '.join(changed[:3])}{more})"
    return "never run with these settings"


def _stale(stage: Stage, key: str, record: dict, found: dict[str, str], shelf: Shelf) -> str | None:
    for name in stage.needs:
        if record["needs"][name] != shelf.outputs(name, found[name]):
            return f"the result of {name} has other bytes than before"
    changed = shelf.changed_volume(record)
    if changed:
        return f"{changed} is missing or was changed"
    changed = shelf.changed_output(stage.name, key)
    return f"its output {changed} is missing or was edited" if changed else None
