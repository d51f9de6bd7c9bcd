"""The manifest that `fetch` leaves: which model and which files later stages read, and where they are. No torch here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from tunestation.pipeline.files import read_json, write_json

NAME = "manifest.json"


@dataclass(frozen=True)
class FetchedModel:
    """The model that a recipe starts from."""

    ref: str
    """Reference of its folder."""
    repo: str | None
    """Its repository, if it comes from a hub."""
    commit: str | None
    """The commit of that repository."""
    files: dict[str, str]
    """Name -> SHA-256 of every file that counts."""
    source: dict | None = None
    """What a converted model was made from: {ref, family, version, files: name -> SHA-256}."""

    @property
    def name(self) -> str:
        """How others call it: the repository, or the reference of a local folder."""
        return self.repo or self.ref


def write_manifest(fetch: Path, model: FetchedModel | None, data: list[list[dict]]) -> None:
    """Write what was fetched: `data` holds, for each data source of the recipe, its files as {ref, sha256}."""
    described = asdict(model) if model else None
    if described and model.source is None:
        del described["source"]
    write_json(fetch / NAME, {"model": described, "data": data})


def model_of(fetch: Path) -> FetchedModel | None:
    """The model that the result of `fetch` describes; None when the recipe starts from new weights."""
    found = read_json(fetch / NAME)["model"]
    return FetchedModel(**found) if found else None


def data_of(fetch: Path) -> list[list[dict]]:
    """The fetched files {ref, sha256} of each data source; empty for one that lies on this machine."""
    return read_json(fetch / NAME)["data"]
