"""A model that was fetched in a form nobody loads without code: rewritten once, beside the others on the model volume."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout

from tunestation.errors import TunestationError
from tunestation.fetching.manifest import FetchedModel
from tunestation.fetching.place import Place, alone, check_space, writing
from tunestation.fetching.progress import amount
from tunestation.models.folder import model_files
from tunestation.models.native.registry import family_of, version_of
from tunestation.pipeline.digest import Digests, text_digest
from tunestation.pipeline.files import read_json
from tunestation.pipeline.volumes import Volumes

KEY = 16
"""Letters of the digest of its source in the name of a converted folder."""


def converted(model: FetchedModel, volumes: Volumes, digests: Digests) -> FetchedModel:
    """The model that `model` becomes: made now, or found from an earlier time. Its folder is named after its source's digests.

    Raises InputError if it cannot be converted, TunestationError for disk and space.
    """
    folder = volumes.path(model.ref)
    config = read_json(folder / "config.json")
    family = family_of(config)
    family_name = family.name if family else config["model_type"]
    source = {"ref": model.ref, "family": family_name, "version": version_of(family), "files": model.files}
    key = text_digest(json.dumps({name: source[name] for name in ("family", "version", "files")}, sort_keys=True))
    ref = f"models:converted/{model.name.partition(':')[2].replace('/', '--') or model.name.replace('/', '--')}-{key[:KEY]}"
    place = Place(volumes.path(ref), "TUNE_MODELS")
    with writing(place), alone(place):
        if not place.final.is_dir():
            _sweep(place)
            for name, sha256 in _make(folder, place, model, family_name).items():
                digests.remember(place.final / name, sha256)
    files = {path.name: sha256 for path, sha256 in digests.of_all(model_files(place.final)).items()}
    return FetchedModel(ref, model.repo, model.commit, files, source)


def _sweep(place: Place) -> None:
    """Remove what killed runs left of converting the same model's other files or by another version; what holds its lock is being made."""
    name = escape(place.final.name.rpartition("-")[0])
    for partial in sorted(place.final.parent.glob(f"{name}-{'[0-9a-f]' * KEY}.partial")):
        other = Place(partial.with_suffix(""), place.variable)
        if other != place:
            with suppress(Timeout), FileLock(other.lock, timeout=0):
                shutil.rmtree(partial)
                print(f"removed {partial}, an unfinished conversion of other files or by another version", flush=True)


def _make(folder: Path, place: Place, model: FetchedModel, family: str) -> dict[str, str]:
    """In `.partial` until it is whole; what an interrupted run left there is of the same source, as the name says.

    Returns the digests of the weight files that were written.
    """
    from tunestation.models.native.convert import convert

    size = sum(path.stat().st_size for path in model_files(folder))
    there = sum(path.stat().st_size for path in place.partial.glob("*")) if place.partial.is_dir() else 0
    check_space(model.name, size - there, place)
    print(f"converting {model.name} ({family}), {amount(size)}, into safetensors that load without code: {place.final}", flush=True)
    before = _stamps(folder)
    written = convert(folder, place.partial, model.files, model.name)
    if _stamps(folder) != before:
        shutil.rmtree(place.partial)
        raise TunestationError("changed while it was converted.", str(folder), "Let nothing write to it, and run again.")
    place.partial.rename(place.final)
    return written


def _stamps(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of each file; not `ctime`, which links from the result change."""
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in model_files(folder)]
