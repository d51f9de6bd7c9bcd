"""What of a run folder is whole: finished stages and complete checkpoints, each with a marker that was written last."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from fsspec import AbstractFileSystem

STAGE, CHECKPOINT = "stage.json", "checkpoint.json"
PLACES = re.compile(rf"(node-\d+/)?([\w-]+-[0-9a-f]{{12}}/{STAGE}|[\w-]+-[0-9a-f]{{12}}\.partial/checkpoints/checkpoint-\d+/{CHECKPOINT})")


@dataclass(frozen=True)
class Unit:
    """A folder that is copied whole or not at all."""

    name: str
    """Below the run folder: `merge-0123456789ab`, or `train-0123456789ab.partial/checkpoints/checkpoint-20`."""
    marker: str
    """The file that is there only when all others are."""
    said: bytes
    """What the marker says."""

    @property
    def content(self) -> object:
        """Equal for units of equal content: of a stage the digest of its outputs (its record also holds clock times)."""
        return json.loads(self.said)["outputs"] if self.marker == STAGE else self.said

    @property
    def partial(self) -> str | None:
        """The unfinished stage that a checkpoint belongs to."""
        return self.name.partition("/checkpoints/")[0] if self.marker == CHECKPOINT else None

    @property
    def step(self) -> int:
        """Of a checkpoint."""
        return int(self.name.rpartition("-")[2])


@dataclass(frozen=True)
class Tree:
    """A run folder on some file system."""

    fs: AbstractFileSystem
    root: str

    def path(self, name: str) -> str:
        """Where `name` is."""
        return f"{self.root}/{name}"

    def names(self, folder: str = "") -> list[str]:
        """All files below `folder`, named from the root."""
        start = self.root.rstrip("/") + "/"
        return sorted(found[len(start) :] for found in self.fs.find(self.path(folder) if folder else self.root, withdirs=False))

    def units(self) -> list[Unit]:
        """All that is whole, in order of name; what goes away meanwhile is left out."""
        self.fs.invalidate_cache()
        if not self.fs.exists(self.root):
            return []
        found = []
        for name in self.names():
            if PLACES.fullmatch(name):
                folder, _, marker = name.rpartition("/")
                said = self.read(name)
                found += [Unit(folder, marker, said)] if said is not None else []
        return found

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None if it is not there."""
        try:
            return self.fs.cat_file(self.path(name))
        except FileNotFoundError:
            return None

    def remove(self, folder: str, marker: str) -> None:
        """Remove a folder, its marker first: what is left of it at any moment is not whole."""
        if self.fs.exists(self.path(f"{folder}/{marker}")):
            self.fs.rm_file(self.path(f"{folder}/{marker}"))
        if self.fs.exists(self.path(folder)):
            self.fs.rm(self.path(folder), recursive=True)
