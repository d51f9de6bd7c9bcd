"""fetch: models and data at their commits onto the volumes, and a manifest of what later stages read from there."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field

from tunestation.errors import InputError, TunestationError
from tunestation.fetching.manifest import FetchedModel, write_manifest
from tunestation.fetching.progress import amount
from tunestation.models.folder import check_model_folder, model_files, needs_conversion
from tunestation.pipeline.digest import Digests
from tunestation.pipeline.job import Job, Result
from tunestation.recipe.base import Part, RelativePath
from tunestation.recipe.sources import Hub, RepoId, Sha256

Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
STARTER = "package:starter/model"


class HubModel(Part):
    """A model repository at one commit."""

    kind: Literal["hub"]
    hub: Hub
    repo: RepoId
    commit: Commit


class FolderModel(Part):
    """A model folder of the user's."""

    kind: Literal["folder"]
    ref: Annotated[str, Field(pattern=r"^(models|recipe):")]


class StarterModel(Part):
    """The model that ships with the package."""

    kind: Literal["starter"]


class NewModel(Part):
    """Fresh weights: nothing to fetch."""

    kind: Literal["new"]


class HubData(Part):
    """Files of a dataset repository at one commit."""

    kind: Literal["hub"]
    hub: Hub
    repo: RepoId
    commit: Commit
    files: Annotated[tuple[RelativePath, ...], Field(min_length=1)]


class UrlData(Part):
    """One file from the web."""

    kind: Literal["url"]
    url: str
    sha256: Sha256


class LocalData(Part):
    """Files or a generator of this machine: nothing to fetch."""

    kind: Literal["local"]


class Params(Part):
    """What `fetch` is asked for: the model, and one entry for each data source of the recipe.

    `conversions` are versions of the code that rewrites the model: raising one makes another key.
    """

    model: Annotated[HubModel | FolderModel | StarterModel | NewModel, Field(discriminator="kind")]
    data: tuple[Annotated[HubData | UrlData | LocalData, Field(discriminator="kind")], ...]
    conversions: dict[str, int] = {}


def run(params: dict, job: Job) -> Result:
    """Fetch, check, and write `manifest.json`: the model's folder and the data's files as references with their SHA-256.

    Raises InputError for a model folder or repository that cannot be used, TunestationError for network and disk.
    """
    wanted = Params.model_validate_json(json.dumps(params))
    offline = bool(job.machine["offline"])
    digests = Digests(job.volumes.cache)
    model = _model(wanted.model, job, offline, digests)
    data = [_data(part, job, offline, digests) for part in wanted.data]
    write_manifest(job.output, model, data)
    volumes = {f"{model.ref}/{name}": sha256 for name, sha256 in model.files.items()} if model else {}
    volumes |= {file["ref"]: file["sha256"] for files in data for file in files}
    return Result(facts=_facts(wanted, volumes, job), volumes=volumes)


def url_path(url: str, sha256: str) -> str:
    """Where the file of a URL lies, relative to the dataset volume: readers go by its suffix, so it keeps its name."""
    name = re.sub(r"[^\w.-]", "_", PurePosixPath(unquote(urlsplit(url).path)).name).lstrip(".")
    return f"url/{sha256[:16]}/{name or 'data'}"


def _model(model: HubModel | FolderModel | StarterModel | NewModel, job: Job, offline: bool, digests: Digests) -> FetchedModel | None:
    if isinstance(model, NewModel):
        return None
    ref = _model_ref(model, job, offline)
    folder = job.volumes.path(ref)
    _refuse_unusable(folder, _shown(model, ref))
    paths = model_files(folder)
    print(f"checking {_shown(model, ref)}: {len(paths)} files, {amount(sum(path.stat().st_size for path in paths))}", flush=True)
    files = {path.name: sha256 for path, sha256 in digests.of_all(paths).items()}
    repo, commit = (model.repo, model.commit) if isinstance(model, HubModel) else (None, None)
    fetched = FetchedModel(ref, repo, commit, files)
    return _converted(fetched, job, digests) if needs_conversion(folder) else fetched


def _refuse_unusable(folder: Path, name: str) -> None:
    if problems := check_model_folder(folder, name):
        raise InputError(problems=problems)


def _converted(fetched: FetchedModel, job: Job, digests: Digests) -> FetchedModel:
    """Checked as every folder is: what pickles hold is seen only when they are safetensors."""
    from tunestation.fetching.conversion import converted

    made = converted(fetched, job.volumes, digests)
    _refuse_unusable(job.volumes.path(made.ref), made.ref)
    return made


def _model_ref(model: HubModel | FolderModel | StarterModel, job: Job, offline: bool) -> str:
    """The reference of the model's folder, fetched if it comes from a hub."""
    if isinstance(model, FolderModel):
        return model.ref
    if isinstance(model, StarterModel):
        if not job.volumes.path(STARTER).is_dir():
            raise TunestationError("The starter model is not in this checkout.", STARTER, "Make it: invoke reproduce starter")
        return STARTER
    from tunestation.fetching.download import fetch_repository, repository_path

    ref = f"models:{repository_path(model.repo, model.commit)}"
    fetch_repository(model.hub, "model", model.repo, model.commit, (), job.volumes.path(ref), offline)
    return ref


def _shown(model: HubModel | FolderModel | StarterModel, ref: str) -> str:
    return model.repo if isinstance(model, HubModel) else ref


def _data(part: HubData | UrlData | LocalData, job: Job, offline: bool, digests: Digests) -> list[dict]:
    if isinstance(part, LocalData):
        return []
    refs = _url_refs(part, job, offline) if isinstance(part, UrlData) else _hub_refs(part, job, offline)
    files = [{"ref": ref, "sha256": digests.of(job.volumes.path(ref))} for ref in refs]
    if isinstance(part, UrlData) and files[0]["sha256"] != part.sha256:
        path = job.volumes.path(refs[0])
        what = f"was changed: it has SHA-256 {files[0]['sha256']}, but the recipe wants {part.sha256}."
        raise InputError(what, str(path), "Delete it to fetch it again.")
    return files


def _hub_refs(part: HubData, job: Job, offline: bool) -> list[str]:
    from tunestation.fetching.download import fetch_repository, repository_path

    folder = f"datasets:{repository_path(part.repo, part.commit)}"
    names = fetch_repository(part.hub, "dataset", part.repo, part.commit, part.files, job.volumes.path(folder), offline)
    return [f"{folder}/{name}" for name in names]


def _url_refs(part: UrlData, job: Job, offline: bool) -> list[str]:
    from tunestation.fetching.download import fetch_url

    ref = f"datasets:{url_path(part.url, part.sha256)}"
    fetch_url(part.url, part.sha256, job.volumes.path(ref), offline)
    return [ref]


def _facts(wanted: Params, volumes: dict[str, str], job: Job) -> dict:
    commits = {part.repo: part.commit for part in (wanted.model, *wanted.data) if isinstance(part, HubModel | HubData)}
    return {"commits": commits, "files": len(volumes), "bytes": sum(job.volumes.path(ref).stat().st_size for ref in volumes)}
