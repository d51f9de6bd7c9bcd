"""Fetches a run folder over SSH with rsync, and lets in only what is whole."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from tunestation.errors import InputError, TunestationError
from tunestation.syncing.copying import bring
from tunestation.syncing.units import CHECKPOINT, STAGE, Tree

ARRIVING = ".arriving"
MARKERS = (STAGE, CHECKPOINT)
NOT_WHOLE = ("*.older/", ".saving/", "/logs/", "/node-*/logs/", ".lock", ARRIVING)
VANISHED = 24
"""rsync's exit code for files that went away while it read them."""


def pull(source: str, target: Path) -> Iterator[str]:
    """Bring what is whole in `source` (`[user@]host:path`) to `target`; yields a line for each.

    rsync works file by file while the source goes on changing. So markers come in a second pass, and a third one finds what changed
    since the first: units that it touches are left for the next time.
    """
    if not shutil.which("rsync"):
        raise InputError("there is no rsync.", "--source", "Install it here and there, or give an fsspec URL such as sftp://host/path.")
    staging = target / ARRIVING
    staging.mkdir(parents=True, exist_ok=True)
    files, markers = [f"--exclude={name}" for name in MARKERS], [*(f"--include={name}" for name in ("*/", *MARKERS)), "--exclude=*"]
    shutil.rmtree(staging)
    _rsync(source, staging, *files)
    _rsync(source, staging, *markers)
    for changed in _rsync(source, staging, *files):
        _spoil(staging, changed)
    yield from bring(Tree(LocalFileSystem(), str(staging)), Tree(LocalFileSystem(), str(target)), move=True)
    shutil.rmtree(staging)


def _rsync(source: str, staging: Path, *filters: str) -> list[str]:
    """Names that were transferred. What lies in the target already is linked, not sent again."""
    staging.mkdir(exist_ok=True)
    exclude = [f"--exclude={name}" for name in NOT_WHOLE]
    command = ["rsync", "-a", "--partial", "--link-dest=..", "--out-format=%n", *exclude, *filters, f"{source.rstrip('/')}/", f"{staging}/"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, VANISHED):
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
        raise TunestationError(f"rsync failed: {said}.", source, "Check the address; RSYNC_RSH='ssh -p PORT' names another port.")
    return [name for name in done.stdout.splitlines() if not name.endswith("/")]


def _spoil(staging: Path, changed: str) -> None:
    """Take the markers of the units that hold `changed` away."""
    for folder in (staging / changed).parents:
        for marker in MARKERS:
            (folder / marker).unlink(missing_ok=True)
        if folder == staging:
            return
