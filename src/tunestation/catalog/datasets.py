"""The data sets that can be named: `datasets.yaml`, read strictly."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, RootModel
from ruamel.yaml import YAML

from tunestation.errors import InputError
from tunestation.recipe.base import Name, Part, Positive, RelativePath
from tunestation.recipe.data import ReadOptions
from tunestation.recipe.formats import TEXT_KINDS, Format
from tunestation.recipe.problems import suggestion
from tunestation.recipe.sources import Hub, RepoId

FILE = Path(__file__).parent / "datasets.yaml"


class Dataset(Part):
    """One data set: where it is, how its rows are read, and what its own page says of it."""

    summary: str
    """What it holds, in one line."""
    repo: RepoId | None = None
    """Repository of the hub; None where the files have to be brought to the dataset volume."""
    hub: Hub = "huggingface"
    """Which hub."""
    revision: str = "main"
    """Branch, tag or commit; a lock pins the commit."""
    files: tuple[RelativePath, ...] = ()
    """Names or patterns of the repository's files."""
    paths: tuple[RelativePath, ...] = ()
    """Files below the dataset volume, where there is no repository."""
    read: ReadOptions = ReadOptions()
    """How the files are opened."""
    format: Format
    """How a row is read."""
    columns: Annotated[tuple[str, ...], Field(min_length=1)]
    """Columns that the format reads."""
    licence: str = ""
    """As the data set states it; empty where that is not known."""
    rows: Positive | None = None
    """Rows for training; None where that is not known."""
    note: str = ""
    """What has to be done or known before it can be used."""

    @property
    def objective(self) -> str:
        """`train.objective` that it is for."""
        return "pretrain" if self.format.kind in TEXT_KINDS else "sft"

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return f"{self.hub}:{self.repo}" if self.repo else ", ".join(self.paths)


class _Catalogue(RootModel[dict[Name, Dataset]]):
    pass


@cache
def datasets() -> dict[str, Dataset]:
    """Name -> data set, in the order of the file."""
    tree = YAML(typ="safe").load(FILE.read_text(encoding="utf-8"))
    return _Catalogue.model_validate_json(json.dumps(tree)).root


def dataset(name: str) -> Dataset:
    """The data set called `name`. Raises InputError naming near ones."""
    known = datasets()
    if name not in known:
        raise InputError(f"there is no data set '{name}' in the catalogue.", "--data", suggestion(name, list(known)))
    return known[name]
