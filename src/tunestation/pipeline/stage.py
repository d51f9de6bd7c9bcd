"""A stage, and the key under which its result is kept."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from tunestation.pipeline.digest import text_digest


@dataclass(frozen=True)
class Stage:
    """One step of the way of a recipe, with nothing but its own slice of the recipe."""

    name: str
    function: str
    """`module:function`, called in a child process as function(params, job) -> Result."""
    params: dict
    """JSON values; all that the stage may know of the recipe."""
    needs: tuple[str, ...] = ()
    """Earlier stages whose folders it reads."""
    tools: tuple[str, ...] = ()
    """Packages whose version shapes the output."""
    version: int = 1
    """Raised when the stage's own code changes what it writes."""
    exact: bool = False
    """Equal inputs give equal bytes on every machine; else only on the same kind of device."""
    graceful: bool = False
    """Can be asked to stop and keep a checkpoint; any other stage is ended at once."""
    resumes: bool = False
    """Goes on from what an interrupted run of the same key left; any other stage begins anew."""
    distributed: bool = False
    """Starts through torch.distributed.run, one process a GPU."""
    variables: tuple[tuple[str, str], ...] = ()
    """Environment variables of its process, over those of every stage. In no key: they change how fast it works, not what comes of it."""
    unchecked: tuple[str, ...] = ("logs/*",)
    """Files that hold clock times: published, but in no digest."""


def tool_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions without local labels (`2.13.0+cpu` is `2.13.0`); 'absent' for what is not installed."""
    return {name: _version(name) for name in names}


@cache
def _version(name: str) -> str:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return "absent"


def canonical(value: object) -> str:
    """JSON with one spelling for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def keys(stages: Iterable[Stage]) -> dict[str, str]:
    """Stage name -> key: the SHA-256 of its name, version, params, tools and the keys of what it needs."""
    found: dict[str, str] = {}
    for stage in stages:
        identity = {
            "stage": stage.name,
            "version": stage.version,
            "params": stage.params,
            "tools": tool_versions(stage.tools),
            "needs": {name: found[name] for name in stage.needs},
        }
        found[stage.name] = text_digest(canonical(identity))
    return found


def differences(before: dict, after: dict, prefix: str = "") -> list[str]:
    """`name: old -> new` for each leaf in which two parameter trees differ."""
    every = sorted({*before, *after})
    return [line for name in every for line in _difference(f"{prefix}{name}", before.get(name), after.get(name))]


def _difference(name: str, old: object, new: object) -> list[str]:
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        return differences(old, new, f"{name}.")
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for n, pair in enumerate(zip(old, new, strict=True)) for line in _difference(f"{name}[{n}]", *pair)]
    return [f"{name}: {_short(old)} -> {_short(new)}"]


def _short(value: object) -> str:
    text = canonical(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
