"""Where the volumes lie: can they be written, and will they last?"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunestation.doctor.finding import Finding
from tunestation.doctor.probe import GIB
from tunestation.doctor.providers import Provider, recognise
from tunestation.settings import Settings

IN_MEMORY = ("tmpfs", "ramfs")
LAYERS = ("overlay", "aufs", "fuse.fuse-overlayfs")
"""File systems of a container's own layer."""
LITTLE = 10 * GIB


@dataclass(frozen=True)
class Mount:
    """A mounted file system."""

    point: Path
    kind: str


def mounts(text: str | None = None) -> list[Mount]:
    """The mounts of this process, from /proc/self/mountinfo (proc(5)) or its `text`; of a system without it only the root."""
    file = Path("/proc/self/mountinfo")
    told = text if text is not None else file.read_text(encoding="utf-8") if file.exists() else ""
    found = [Mount(Path(_unescaped(line.split()[4])), line.partition(" - ")[2].split()[0]) for line in told.splitlines()]
    return [Mount(Path("/"), "unknown"), *found]


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mount_of(path: Path, every: Iterable[Mount]) -> Mount:
    """The mount that holds `path`; of several on one point the last one counts."""
    holding = [mount for mount in every if path.is_relative_to(mount.point)]
    deepest = max(len(mount.point.parts) for mount in holding)
    return [mount for mount in holding if len(mount.point.parts) == deepest][-1]


def existing(path: Path) -> Path:
    """`path`, or its nearest parent that this user can see; links resolved."""
    return next(place for place in (path, *path.parents) if os.path.exists(place)).resolve()


def volumes(settings: Settings) -> dict[str, Path]:
    """TUNE_* variable -> folder."""
    return {
        "TUNE_RUNS": settings.runs,
        "TUNE_MODELS": settings.models,
        "TUNE_DATASETS": settings.datasets,
        "TUNE_CACHE": settings.cache,
    }


def writable(settings: Settings) -> Finding:
    """Whether files can be made on the volumes; datasets may be read-only."""
    refused = {name: error for name, path in volumes(settings).items() if (error := _refusal(path))}
    hard = {name: error for name, error in refused.items() if name != "TUNE_DATASETS"}
    if hard:
        what = "; ".join(f"{name} ({path}) takes no files: {hard[name]}" for name, path in volumes(settings).items() if name in hard)
        return Finding("problem", "volumes", f"{what}.", "Change the owner of the folder, or point the variable (or TUNE_HOME) elsewhere.")
    note = f"; TUNE_DATASETS is read-only ({settings.datasets})" if refused else ""
    return Finding("ok", "volumes", f"writable, runs in {settings.runs}{note}")


def _refusal(path: Path) -> str:
    try:
        with tempfile.TemporaryFile(dir=existing(path)):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def lasting(settings: Settings, provider: Provider | None, every: Sequence[Mount]) -> Finding:
    """Whether runs, models and data lie on a disk that outlasts this machine or container."""
    wanted = {name: path for name, path in volumes(settings).items() if name != "TUNE_CACHE"}
    lost = {name: why for name, path in wanted.items() if (why := loss(path, provider, every))}
    if not lost:
        return Finding("ok", "lasting", f"runs are on {_kind(settings.runs, every)}")
    level = "warning" if "TUNE_RUNS" not in lost else _level(settings.runs, provider, every)
    named = {why: ", ".join(f"{name} ({wanted[name]})" for name in lost if lost[name] == why) for why in lost.values()}
    what = "; ".join(f"{names}: {why}" for why, names in named.items())
    return Finding(level, "lasting", f"{what}.", _proposal(provider, every))


def warning(settings: Settings) -> str:
    """What to tell before a run whose results would vanish with this machine or container; empty if they last."""
    every, provider = mounts(), recognise()
    if not loss(settings.runs, provider, every):
        return ""
    found = lasting(settings, provider, every)
    return f"warning: results would not last. {found.what} {found.remedy}"


def loss(path: Path, provider: Provider | None, every: Sequence[Mount]) -> str:
    """Where `path` lies and when it is gone; empty if it lasts, as far as can be seen."""
    mount = mount_of(existing(path), every)
    if mount.kind in IN_MEMORY:
        return "in memory, gone when the machine or container stops"
    if mount.point != Path("/"):
        return ""
    if provider:
        return f"on the machine's own disk; on {provider.name}, {provider.loss}"
    return "in the container's own layer, gone with the container" if mount.kind in LAYERS else ""


def _level(path: Path, provider: Provider | None, every: Sequence[Mount]) -> str:
    in_memory = mount_of(existing(path), every).kind in IN_MEMORY
    return provider.level if provider and not in_memory else "problem"


def _proposal(provider: Provider | None, every: Sequence[Mount]) -> str:
    folder = provider.lasting() if provider else None
    if folder and mount_of(folder.resolve(), every).point != Path("/"):
        return f"Set TUNE_HOME={folder}/tunestation, or bring results home with 'invoke sync'."
    return "Mount a volume and point TUNE_HOME to it, or bring results home with 'invoke sync'."


def _kind(path: Path, every: Sequence[Mount]) -> str:
    mount = mount_of(existing(path), every)
    return f"{mount.point} ({mount.kind})"


def space(settings: Settings) -> Finding:
    """Free space for results: a 7B model's merged folder alone takes 15 GB."""
    free = shutil.disk_usage(existing(settings.runs)).free
    said = f"{free / GIB:.1f} GiB free for runs ({settings.runs})"
    if free < GIB:
        return Finding("problem", "disk", f"{said}.", "Free some space, or point TUNE_RUNS to a larger disk.")
    if free < LITTLE:
        return Finding("warning", "disk", f"{said}; a merged 7B model takes 15.", "Point TUNE_RUNS to a larger disk for large models.")
    return Finding("ok", "disk", said)
