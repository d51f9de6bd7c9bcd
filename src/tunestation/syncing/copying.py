"""Copies whole units from one tree to another, so that what arrives is whole or not there."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from tunestation.errors import TunestationError
from tunestation.pipeline.digest import SUMS, file_digest
from tunestation.syncing.units import CHECKPOINT, STAGE, Tree, Unit

PINS = "pins.json"
"""The commits that a recipe's revisions stood for: without them its keys are other ones."""


def bring(source: Tree, target: Tree, move: bool = False) -> Iterator[str]:
    """Copy (or move) what is whole in `source` and not yet in `target`, then drop there what it replaces; yields a line for each."""
    here = source.units()
    there = {unit.name: unit.content for unit in target.units()}
    pins = source.read(PINS)
    if pins is not None and target.read(PINS) is None:
        _write(target, PINS, pins)
    for unit in here:
        if there.get(unit.name) != unit.content:
            yield f"{unit.name} {'arrived' if copy(source, target, unit, move) else 'went away while it was copied; next time'}"
    for folder in _replaced(here, target.units()):
        target.remove(folder, CHECKPOINT)
        yield f"{folder} removed: something newer is there"


def copy(source: Tree, target: Tree, unit: Unit, move: bool = False) -> bool:
    """Copy one unit, its marker last. False, and nothing whole under its name, if the source changed meanwhile.

    Raises TunestationError if what arrived has not the bytes that its SHA256SUMS names.
    """
    marker = f"{unit.name}/{unit.marker}"
    target.remove(unit.name, unit.marker)
    try:
        for name in [*_beside(source, unit), *source.names(unit.name)]:
            if name != marker:
                _copy_file(source, target, name, move)
        whole = source.read(marker) == unit.said
    except FileNotFoundError:
        whole = False
    if whole and unit.marker == STAGE and isinstance(target.fs, LocalFileSystem):
        _check(target, unit)
    if whole:
        _write(target, marker, unit.said)
    else:
        target.remove(unit.name, unit.marker)
    return whole


def _beside(source: Tree, unit: Unit) -> list[str]:
    """Files of an unfinished stage that lie beside its checkpoints and are needed to go on from one."""
    return [name for name in source.names(unit.partial) if posixpath.dirname(name) == unit.partial] if unit.partial else []


def _copy_file(source: Tree, target: Tree, name: str, move: bool) -> None:
    """At least one of the two trees is local, and to move both are."""
    target.fs.makedirs(posixpath.dirname(target.path(name)), exist_ok=True)
    if move:
        target.fs.mv(source.path(name), target.path(name))
    elif isinstance(target.fs, LocalFileSystem):
        source.fs.get_file(source.path(name), target.path(name))
    else:
        target.fs.put_file(source.path(name), target.path(name))


def _write(target: Tree, name: str, text: bytes) -> None:
    """Write a small file; on a local disk complete or not at all, as object stores do by themselves."""
    if isinstance(target.fs, LocalFileSystem):
        target.fs.makedirs(posixpath.dirname(target.path(name)), exist_ok=True)
        target.fs.pipe_file(target.path(f"{name}.arriving"), text)
        target.fs.mv(target.path(f"{name}.arriving"), target.path(name))
    else:
        target.fs.pipe_file(target.path(name), text)


def _check(target: Tree, unit: Unit) -> None:
    sums = (target.read(f"{unit.name}/{SUMS}") or b"").decode()
    for line in sums.splitlines():
        sha256, path = line[:64], Path(target.path(f"{unit.name}/{line[66:]}"))
        if not path.is_file() or file_digest(path) != sha256:
            target.remove(unit.name, unit.marker)
            what = "arrived with other bytes than its SHA256SUMS names, and was not kept."
            raise TunestationError(what, str(path), "Run 'invoke verify' where it was made, then sync again.")


def _replaced(here: list[Unit], there: list[Unit]) -> Iterator[str]:
    """Folders of the target that the source has something newer for.

    These are the checkpoints and the rest of an unfinished stage that is finished now, and checkpoints dropped for newer ones.
    """
    names, finished = {unit.name for unit in here}, {unit.name + ".partial" for unit in here if unit.marker == STAGE}
    newest = {unit.partial: unit.step for unit in sorted((one for one in here if one.partial), key=lambda one: one.step)}
    checkpoints = [unit for unit in there if unit.partial]
    for unit in checkpoints:
        done = posixpath.basename(unit.partial) in finished  # also the parts that other nodes had of it
        if done or (unit.name not in names and unit.step < newest.get(unit.partial, 0)):
            yield unit.name
    yield from sorted({unit.partial for unit in checkpoints if posixpath.basename(unit.partial) in finished})
