"""Finding and reading a recipe file; every problem of it is told at once."""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from ruamel.yaml import YAML

from tunestation.errors import InputError, Problem
from tunestation.recipe import document as documents
from tunestation.recipe.problems import problems_of
from tunestation.recipe.schema import Recipe


def find(name: str, folder: Path) -> Path:
    """The file of a recipe given by path or by bare name below `folder`. Raises InputError naming near ones."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if path.is_file():
            return path
        raise InputError("there is no such recipe file.", name, "Run 'invoke recipes' for the list.")
    if (folder / f"{name}.yaml").is_file():
        return _from_here(folder / f"{name}.yaml")
    if name.startswith("-"):
        raise InputError(f"'{name}' stands where a recipe belongs.", remedy="The recipe comes first; 'invoke --help TASK' explains a task.")
    names = [entry.stem for entry in every(folder)]
    near = difflib.get_close_matches(name, names, 1, 0.5)
    remedy = f"Did you mean '{near[0]}'?" if near else "Run 'invoke recipes' for the list."
    raise InputError(f"there is no recipe '{name}' in {folder}.", remedy=remedy)


def _from_here(path: Path) -> Path:
    """`path` as seen from the current folder if it lies below: `recipes/x.yaml` reads better in messages."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def every(folder: Path) -> list[Path]:
    """All recipe files below `folder`, by name."""
    return sorted(path for path in folder.glob("*.yaml") if path.is_file())


@dataclass(frozen=True)
class Loaded:
    """A recipe, and its file for naming lines."""

    recipe: Recipe
    document: documents.Document


def load(path: Path, overrides: Iterable[str] = ()) -> Loaded:
    """Read and check the recipe at `path`, with `--set` assignments on top. Raises InputError with every problem."""
    document = documents.read(path)
    for assignment in overrides:
        documents.override(document, assignment)
    try:
        recipe = Recipe.model_validate_json(json.dumps(document.plain()))
    except ValidationError as error:
        raise InputError(problems=problems_of(error, document)) from None
    if recipe.name != path.stem:
        what = f"name is '{recipe.name}', but the file is called '{path.name}'."
        remedy = "Give both the same name: results lie in a folder of that name."
        raise InputError(problems=[Problem(what, document.where(("name",)), remedy)])
    return Loaded(recipe, document)


def resolved(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out."""
    tree = recipe.model_dump(mode="json")
    tree["train"]["learning_rate"] = recipe.train.peak_learning_rate
    out = io.StringIO()
    yaml = YAML()
    yaml.width = 120
    yaml.dump(tree, out)
    return out.getvalue()
