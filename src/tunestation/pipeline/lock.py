"""The committed lock of a recipe: what a run resolved, made and measured, and how a later run compares with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunestation.errors import InputError
from tunestation.pipeline.files import read_json, write_json
from tunestation.pipeline.job import ALWAYS, NEVER
from tunestation.pipeline.machine import python
from tunestation.pipeline.stage import Stage, differences

VERSION = 1
"""Of the lock's form."""
Verdict = Literal["exact", "within tolerance", "differs", "not comparable"]
RELATIVE_TOLERANCE = 0.05
"""Of a new lock, unless the stage says otherwise; two kinds of device round differently, and a recipe's author may narrow it."""


@dataclass(frozen=True)
class Comparison:
    """One stage of a run beside the same stage of the lock."""

    stage: str
    verdict: Verdict
    reason: str


def path_of(recipe: Path) -> Path:
    """`career.yaml` -> `career.lock.json`."""
    return recipe.with_suffix(".lock.json")


def read(path: Path) -> dict:
    """The lock at `path`; empty if there is none. Raises InputError if it is damaged, as by a merge of two branches."""
    remedy = "Take the committed one again, or delete it and let 'invoke reproduce' write another."
    try:
        lock = read_json(path) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"this lock is not JSON: {error}.", str(path), remedy) from None
    if not isinstance(lock, dict):
        raise InputError("this lock is no JSON object.", str(path), remedy)
    if lock.get("schema_version", VERSION) != VERSION:
        raise InputError(f"this lock has schema_version {lock['schema_version']}; version {VERSION} is known here.", str(path), remedy)
    return lock


def write(path: Path, lock: dict) -> None:
    """Write the lock, complete or not at all, with a line a value so that changes can be read."""
    write_json(path, lock)


def entry(record: dict, before: dict | None = None) -> dict:
    """What the lock keeps of a stage's record; tolerances set by hand in `before` stay."""
    kept = (before or {}).get("metrics", {})
    own = {name: {"tolerance": tolerance} for name, tolerance in record.get("tolerances", {}).items()} | kept
    metrics = {
        name: {"value": value, "tolerance": own.get(name, {}).get("tolerance", RELATIVE_TOLERANCE)}
        for name, value in record["metrics"].items()
    }
    shared = {name: record[name] for name in ("key", "tools", "needs", "outputs", "facts", "volumes")}
    found = shared | {"metrics": metrics, "kind": record["machine"]["kind"], "python": python(record["machine"]["python"])}
    return found if _repeats(record) == ALWAYS else found | {"repeats": record["repeats"]}


def _repeats(found: dict) -> str:
    """What a record or a lock's entry says of equal bytes from equal inputs, as `Result.repeats`; older ones say nothing."""
    return found.get("repeats", ALWAYS)


def make(records: Mapping[str, dict], resolved: dict, recipe_digest: str, before: dict) -> dict:
    """A new lock from the records of a complete run; `before` is the lock that it replaces."""
    stages = {name: entry(record, before.get("stages", {}).get(name)) for name, record in records.items()}
    last = list(records.values())[-1]
    return {
        "schema_version": VERSION,
        "recipe_sha256": recipe_digest,
        "resolved": resolved,
        "stages": stages,
        "recorded_on": last["machine"],
    }


def compare(stages: list[Stage], records: Mapping[str, dict], lock: dict) -> list[Comparison]:
    """Each stage of a run against the lock, in order."""
    locked = lock.get("stages", {})
    return [_compare(stage, records[stage.name], locked.get(stage.name)) for stage in stages if stage.name in records]


def _compare(stage: Stage, record: dict, locked: dict | None) -> Comparison:
    if locked is None:
        return Comparison(stage.name, "not comparable", "the lock has no such stage")
    if record["key"] != locked["key"]:
        return Comparison(stage.name, "not comparable", _why_keys_differ(record, locked))
    if record["outputs"] == locked["outputs"]:
        return Comparison(stage.name, "exact", "bit-equal")
    now = python(record["machine"]["python"])
    then = locked.get("python", now)  # older locks do not name it
    if now != then and stage.exact:
        return Comparison(stage.name, "not comparable", f"other bytes under another Python: {then} -> {now}")
    alike = record["machine"]["kind"] == locked["kind"] and _repeats(record) == _repeats(locked) != NEVER
    if record["needs"] == locked["needs"] and now == then and (stage.exact or alike):
        return Comparison(stage.name, "differs", "other bytes from equal inputs, versions and kind of device")
    return _compare_measures(stage, record, locked)


def _why_keys_differ(record: dict, locked: dict) -> str:
    versions = differences(locked["tools"], record["tools"])
    return f"other versions: {'; '.join(versions)}" if versions else "other settings, data, code or earlier stages"


def _compare_measures(stage: Stage, record: dict, locked: dict) -> Comparison:
    facts = differences(locked["facts"], record["facts"])
    if facts:
        return Comparison(stage.name, "differs", f"facts: {'; '.join(facts[:3])}")
    gaps = {name: _gap(record["metrics"].get(name), wanted) for name, wanted in locked["metrics"].items()}
    outside = [f"{name} is off by {gap:.2%}" for name, (gap, allowed) in gaps.items() if not gap <= allowed]
    if outside:
        return Comparison(stage.name, "differs", "; ".join(outside))
    return Comparison(stage.name, "within tolerance", _why_near(gaps))


def _why_near(gaps: dict[str, tuple[float, float]]) -> str:
    if not gaps:
        return "other bytes, on another kind of device or Python, from inputs within tolerance, or by a GPU in no fixed order"
    farthest = max(gaps, key=lambda name: gaps[name][0])
    gap, allowed = gaps[farthest]
    return f"metrics within {gap:.2%}" + (f" ({farthest}, of {100 * allowed:g}% allowed)" if gap else "")


def _gap(value: float | None, wanted: dict) -> tuple[float, float]:
    """Relative distance from the locked value (plain distance from 0), and what is allowed; a missing metric is infinitely far."""
    if value is None:
        return float("inf"), wanted["tolerance"]
    return abs(value - wanted["value"]) / (abs(wanted["value"]) or 1.0), wanted["tolerance"]


def differs(comparisons: list[Comparison]) -> bool:
    """Whether the run failed to reproduce its lock."""
    return any(comparison.verdict == "differs" for comparison in comparisons)
