"""`invoke sync`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from tunestation import settings as machine_settings
from tunestation.errors import InputError, TunestationError
from tunestation.pipeline.run import alone
from tunestation.recipe import loading
from tunestation.syncing.copying import bring
from tunestation.syncing.rsync import pull
from tunestation.syncing.units import Tree

OVER_SSH = re.compile(r"[^/:]+:(?!//)")


def sync(recipe: str, source: str, to: str, every: int) -> None:
    """Copy what is whole of a recipe's runs from `source` to here, or from here `to` somewhere; again `every` seconds if that is not 0."""
    if bool(source) == bool(to):
        raise InputError("give one of --source and --to.", "sync", "--source brings results here, --to takes them from here.")
    if every < 0:
        raise InputError(f"{every} is no number of seconds.", "--every", "Give 1 or more, or 0 for once.")
    settings = machine_settings.load()
    name = loading.load(loading.find(recipe, settings.recipes)).recipe.name
    share = settings.own(Path(name)).as_posix()  # a node that is not the first keeps its own part
    here = settings.runs / share
    while True:
        try:
            count = _round(here, share, source, to)
            said = f"{count} changes" if count else "nothing new"
        except TunestationError as error:
            if not every or isinstance(error, InputError):
                raise
            said = f"{error} Trying again in {every} s."  # a network that is away for a while must not end a night's work
        print(f"{time.strftime('%H:%M:%S')} {name}: {said}", flush=True)
        if not every:
            return
        time.sleep(every)


def _round(here: Path, share: str, source: str, to: str) -> int:
    """Copy what is new, a line for each; returns how much it was. Raises TunestationError where the other side fails."""
    count = 0
    with alone(here) if source else nullcontext():  # what is brought here must not meet a run of the same recipe
        try:
            for count, line in enumerate(_once(here, share, source, to), start=1):  # noqa: B007
                print(f"  {line}", flush=True)
        except TunestationError:
            raise
        except Exception as error:  # each of fsspec's file systems raises what its client raises
            first = (str(error).splitlines() or [""])[0]
            remedy = "Check the address, the network and the credentials of that place."
            raise TunestationError(f"cannot be read or written ({type(error).__name__}: {first}).", source or to, remedy) from error
    return count


def _once(here: Path, share: str, source: str, to: str) -> Iterator[str]:
    if OVER_SSH.match(to):
        raise InputError("over SSH results can only be fetched.", "--to", "Run sync at home with --source, or give an fsspec URL.")
    if OVER_SSH.match(source):
        return pull(f"{source.rstrip('/')}/{share}", here)
    mine = Tree(LocalFileSystem(), str(here))
    if not source:
        return bring(mine, _tree(to, share))
    far = _tree(source, share)
    if isinstance(far.fs, LocalFileSystem) and not Path(far.root.removesuffix(f"/{share}")).is_dir():
        raise InputError("there is no such folder.", source, "Give the runs folder (TUNE_RUNS) of the other machine.")
    return bring(far, mine)


def _tree(url: str, share: str) -> Tree:
    try:
        fs, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"this place cannot be used: {error}.", url, "Give a folder, host:path, or an fsspec URL.") from None
    return Tree(fs, f"{root.rstrip('/')}/{share}")
