"""The two hubs behind one face: which commit a revision stands for, and which files it holds."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from tunestation.errors import InputError

Hub = Literal["huggingface", "modelscope"]
Kind = Literal["model", "dataset"]

FULL_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Asked:
    """What is asked of a hub."""

    hub: Hub
    kind: Kind
    repo: str
    revision: str
    """Branch, tag or commit."""

    def __str__(self) -> str:
        return f"{self.kind} '{self.repo}' at '{self.revision}'"


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository at one commit."""

    path: str
    size: int
    """Bytes."""
    sha256: str | None = None
    """SHA-256 of its bytes; a hub knows it for large files only."""
    git_blob: str | None = None
    """SHA-1 that git gives a small file."""


@dataclass(frozen=True)
class Address:
    """Where a file's bytes are asked for, with which headers (authorization among them)."""

    url: str
    headers: dict[str, str]


def resolve(hub: Hub, kind: Kind, repo: str, revision: str) -> str:
    """The commit id (40 hexadecimal digits) that `revision` stands for today. Asks the network unless it is a commit id.

    Raises InputError for a missing or gated repository or a missing revision, TunestationError when the hub cannot be reached.
    """
    if FULL_COMMIT.fullmatch(revision):
        return revision
    return _client(hub).resolve(Asked(hub, kind, repo, revision))


def list_files(asked: Asked) -> list[RemoteFile]:
    """The files of a repository at `asked.revision`, sorted by path. Raises as `resolve` does."""
    files = sorted(_client(asked.hub).list_files(asked), key=lambda file: file.path)
    climbing = [file.path for file in files if file.path.startswith("/") or ".." in file.path.split("/")]
    if climbing:
        raise InputError(f"The {asked} names a file outside its own folder: '{climbing[0]}'.", "", "Do not use this repository.")
    return files


def address(asked: Asked, path: str) -> Address:
    """Where the file `path` of the repository is downloaded from."""
    return _client(asked.hub).address(asked, path)


def explained(asked: Asked) -> AbstractContextManager[None]:
    """Turns what a hub's package raises while `asked` is answered into a message with the next step."""
    return _client(asked.hub).explained(asked)


def _client(hub: Hub) -> ModuleType:
    if hub == "modelscope":
        from tunestation.fetching import modelscope

        return modelscope
    from tunestation.fetching import huggingface

    return huggingface
