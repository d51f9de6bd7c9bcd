"""Repositories and single files onto a volume: in `.partial` until whole, checked, then under their final name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from huggingface_hub.errors import HTTPError

from tunestation.errors import InputError, TunestationError
from tunestation.fetching import hubs, select
from tunestation.fetching.hubs import Asked, Hub, Kind, RemoteFile
from tunestation.fetching.place import Place, alone, check_space, writing
from tunestation.fetching.progress import Progress, amount
from tunestation.fetching.transport import receive, unreachable
from tunestation.models.folder import early_problems, is_weight, model_files, pickle_problems
from tunestation.pipeline.digest import file_digest

STREAMS = 4
"""Files that arrive at once."""
VARIABLES = {"model": "TUNE_MODELS", "dataset": "TUNE_DATASETS"}


def repository_path(repo: str, commit: str) -> str:
    """The folder of a repository at a commit, relative to its volume."""
    return f"hub/{repo.replace('/', '--')}/{commit}"


def fetch_repository(hub: Hub, kind: Kind, repo: str, commit: str, patterns: Sequence[str], into: Path, offline: bool = False) -> list[str]:
    """Fill `into` with the files of a repository that count, as plain files; returns their names.

    `patterns` choose the files of a dataset and their order; a model's are chosen by `select.model_files`. What is there
    is not asked for again; what was begun is continued. Raises InputError (gated, missing, unusable) or TunestationError
    (no network, no space, not writable, not fetched yet).
    """
    asked, place = Asked(hub, kind, repo, commit), Place(into, VARIABLES[kind])
    if kind == "model" and into.is_dir():
        return [path.name for path in model_files(into)]
    wanted = _wanted(asked, patterns, place, offline)
    if _absent(wanted, into):
        if offline:
            raise _not_fetched(asked)
        with writing(place), alone(place):
            _fill(asked, _absent(wanted, into), place)
    return [file.path for file in wanted]


def fetch_url(url: str, sha256: str, into: Path, offline: bool = False) -> None:
    """Fetch `url` as the file `into`. InputError when its bytes have another digest than `sha256`: nothing is kept then."""
    place = Place(into, VARIABLES["dataset"])
    if into.is_file():
        return
    if offline:
        raise TunestationError(f"'{url}' is not fetched yet.", "", "Run once without --offline.")
    with writing(place), alone(place):
        if not into.is_file():
            _fill_from_url(url, sha256, place)


def fetch_unknown_url(url: str, into: Callable[[str], Path]) -> str:
    """Fetch `url`, whose digest nobody knows yet, and return its SHA-256; `into(sha256)` says where the file goes.

    What an earlier try began is not trusted: there is nothing to check the joined pieces against.
    """
    place = Place(into("0" * 64), VARIABLES["dataset"])
    with writing(place), alone(place):
        place.partial.unlink(missing_ok=True)
        print(f"fetching {url}", flush=True)
        progress = Progress(place.final.name)
        try:
            receive(url, {}, place.partial, progress.count)
        except HTTPError as error:
            raise unreachable(error, url, "Check the address and the network.") from error
        progress.finish()
        sha256 = file_digest(place.partial)
        into(sha256).parent.mkdir(parents=True, exist_ok=True)
        place.partial.replace(into(sha256))
    return sha256


def _fill_from_url(url: str, sha256: str, place: Place) -> None:
    print(f"fetching {url}", flush=True)
    progress, begun = Progress(place.final.name), place.partial.is_file()
    try:
        receive(url, {}, place.partial, progress.count)
        if begun and file_digest(place.partial) != sha256:
            place.partial.unlink()  # the address may have changed since it was begun
            receive(url, {}, place.partial, progress.count)
    except HTTPError as error:
        raise unreachable(error, url, "Check the address and the network.") from error
    actual = file_digest(place.partial)
    if actual != sha256:
        place.partial.unlink()
        what = f"has SHA-256 {actual}, but the recipe wants {sha256}: it was removed."
        raise InputError(what, url, "If the new content is what you want, put its digest into the recipe.")
    progress.finish()
    place.partial.rename(place.final)


def _wanted(asked: Asked, patterns: Sequence[str], place: Place, offline: bool) -> list[RemoteFile]:
    files = _listing(asked, place, offline)
    return select.model_files(asked, files) if asked.kind == "model" else select.data_files(asked, files, patterns)


def _listing(asked: Asked, place: Place, offline: bool) -> list[RemoteFile]:
    if place.listing.is_file():
        return [RemoteFile(**entry) for entry in json.loads(place.listing.read_text(encoding="utf-8"))]
    if offline:
        raise _not_fetched(asked)
    files = hubs.list_files(asked)
    with writing(place), alone(place):
        draft = place.listing.with_suffix(".new")
        draft.write_text(json.dumps([asdict(file) for file in files], indent=1), encoding="utf-8")
        draft.rename(place.listing)
    return files


def _not_fetched(asked: Asked) -> TunestationError:
    return TunestationError(f"The {asked} is not fetched yet.", "", "Run once without --offline.")


def _absent(files: Sequence[RemoteFile], folder: Path) -> list[RemoteFile]:
    return [file for file in files if not (folder / file.path).is_file()]


def _fill(asked: Asked, files: list[RemoteFile], place: Place) -> None:
    """Download `files` into `.partial`, small ones first: a model that cannot be used is refused before the gigabytes."""
    if not files:  # another process brought them while this one waited
        return
    there, total = sum(_present(place.partial, file) for file in files), sum(file.size for file in files)
    check_space(asked.repo, total - there, place)
    print(f"fetching {asked.repo} at {asked.revision[:12]}: {len(files)} files, {amount(total)}", flush=True)
    progress = Progress(asked.repo, total, there)
    _download(asked, [file for file in files if not is_weight(file.path)], place.partial, progress)
    weights = [file for file in files if is_weight(file.path)]
    if asked.kind == "model":
        _refuse_early(place.partial, asked.repo, [file.path for file in weights])
    _download(asked, weights, place.partial, progress)
    progress.finish()
    _publish(files, place)


def _refuse_early(folder: Path, repo: str, weights: list[str]) -> None:
    if problems := [*early_problems(folder, repo), *pickle_problems(folder, repo, weights)]:
        raise InputError(problems=problems)


def _publish(files: list[RemoteFile], place: Place) -> None:
    """One rename; where the folder exists already (more files of a data set), one for each file."""
    if not place.final.exists():
        place.partial.rename(place.final)
        return
    for file in files:
        (place.final / file.path).parent.mkdir(parents=True, exist_ok=True)
        (place.partial / file.path).rename(place.final / file.path)
    shutil.rmtree(place.partial)


def _part(folder: Path, file: RemoteFile) -> Path:
    return folder / f"{file.path}.part"


def _present(folder: Path, file: RemoteFile) -> int:
    """Bytes of `file` that an earlier run left."""
    paths = (folder / file.path, _part(folder, file))
    return next((path.stat().st_size for path in paths if path.is_file()), 0)


def _download(asked: Asked, files: list[RemoteFile], folder: Path, progress: Progress) -> None:
    """Several files at once; the first failure ends them all, and what has arrived stays."""
    with ThreadPoolExecutor(STREAMS) as pool:
        futures = [pool.submit(_download_file, asked, file, folder, progress) for file in files]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            progress.stop()
            pool.shutdown(cancel_futures=True)
            raise


def _download_file(asked: Asked, file: RemoteFile, folder: Path, progress: Progress) -> None:
    target, part = folder / file.path, _part(folder, file)
    if target.is_file():
        return
    part.parent.mkdir(parents=True, exist_ok=True)
    if not part.is_file() or part.stat().st_size < file.size:
        with hubs.explained(asked):
            where = hubs.address(asked, file.path)
            receive(where.url, where.headers, part, progress.count)
    if not _is_intact(part, file):
        part.unlink()
        raise TunestationError(f"'{file.path}' of '{asked.repo}' arrived damaged and was removed.", "", "Run the same command again.")
    part.rename(target)


def _is_intact(path: Path, file: RemoteFile) -> bool:
    """Whether the bytes are those that the hub has, by SHA-256 or, for small files, by git's blob id."""
    if path.stat().st_size != file.size:
        return False
    if file.sha256:
        return file_digest(path) == file.sha256
    return file.git_blob is None or _git_blob(path) == file.git_blob


def _git_blob(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
