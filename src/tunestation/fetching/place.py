"""Where fetched things lie on a volume, and what can be wrong with that place."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub.errors import HTTPError

from tunestation.errors import TunestationError
from tunestation.fetching.progress import amount

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Place:
    """The final name of a folder or file on a volume, and the variable that says where the volume is."""

    final: Path
    variable: str

    @property
    def partial(self) -> Path:
        """Where it grows until it is whole."""
        return self._beside(".partial")

    @property
    def listing(self) -> Path:
        """What the hub said the commit holds: kept, as a commit never changes."""
        return self._beside(".files.json")

    @property
    def lock(self) -> Path:
        """Held by the process that fetches."""
        return self._beside(".lock")

    def _beside(self, suffix: str) -> Path:
        return self.final.with_name(self.final.name + suffix)


@contextmanager
def writing(place: Place) -> Iterator[None]:
    """Make the parent folder; a volume that is full or not writable is said with the way out."""
    parent = place.final.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        yield
    except HTTPError:  # huggingface_hub's HTTP errors are OSErrors too
        raise
    except OSError as error:
        if error.errno in FULL:
            what = f"The disk of {parent} is full ({amount(free_space(parent))} free)."
            raise TunestationError(
                what, "", f"Free space, or set {place.variable} to a larger disk, and run again: it continues."
            ) from error
        remedy = f"Make it writable, or set {place.variable} to a folder that is."
        raise TunestationError(f"Cannot write to {parent} ({error.strerror}).", "", remedy) from error


@contextmanager
def alone(place: Place) -> Iterator[None]:
    """Two recipes may want the same files at the same time: the second waits."""
    lock = FileLock(place.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"  another process fetches {place.final.name}; waiting for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_space(name: str, need: int, place: Place) -> None:
    """Raise TunestationError when `need` bytes more do not fit on the disk of `place`."""
    free = free_space(place.final)
    if need > free:
        what = f"'{name}' needs {amount(need)} more on the disk of {place.final.parent}, which has {amount(free)} free."
        raise TunestationError(what, "", f"Free space, or set {place.variable} to a folder on a larger disk.")


def free_space(path: Path) -> int:
    """Free bytes where `path` is, or will be."""
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.is_dir())).free
