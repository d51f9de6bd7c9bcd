"""Lists of recipes and of steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunestation import settings
from tunestation.catalog import datasets as catalogue
from tunestation.errors import InputError
from tunestation.pipeline import lock as locks
from tunestation.pipeline.plan import Step
from tunestation.recipe import loading
from tunestation.recipe.schema import Recipe
from tunestation.report import fitted, table

if TYPE_CHECKING:
    from tunestation.catalog.models import Model


def recipes(like: str) -> str:
    """A table of all recipes that mention `like`: summary, model, data, last result."""
    folder = settings.load().recipes
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}.", "TUNE_RECIPES", "Set it to the folder of your recipes, or unset it.")
    rows = [_row(path) for path in loading.every(folder)]
    wanted = [row for row in rows if like.lower() in " ".join(row).lower()]
    if not wanted:
        return f"No recipe mentions '{like}'."
    return fitted(wanted, ("recipe", "what it does", "model", "data", "last result"))


def datasets(like: str) -> str:
    """A table of the data sets of the catalogue that mention `like`: content, place, format, rows, licence."""
    rows = [
        (name, each.summary, each.place, each.format.kind, f"{each.rows:,}" if each.rows else "", each.licence)
        for name, each in catalogue.datasets().items()
    ]
    wanted = [row for row in rows if like.lower() in " ".join(row).lower()]
    if not wanted:
        return f"No data set mentions '{like}'."
    return fitted(wanted, ("data set", "what it holds", "where", "format", "rows", "licence"))


def models(like: str) -> str:
    """A table of the base models of the catalogue that mention `like`."""
    from tunestation.catalog.models import models as known

    rows = [(repo, *_described(each), each.modelscope or "") for repo, each in known().items()]
    wanted = [row for row in rows if like.lower() in " ".join(row).lower()]
    if not wanted:
        return f"No model mentions '{like}'."
    return fitted(wanted, ("model", "what it is", "licence", "on ModelScope"))


def _described(model: Model) -> tuple[str, str]:
    shape = model.shape
    size = f"{shape.num_hidden_layers} x {shape.hidden_size}" if shape.hidden_size else ""
    context = f"{model.context:,} tokens" if model.context else ""
    template = f"template {model.template}" if model.template else ""
    facts = (shape.family, shape.standing, size, context, template)
    return ", ".join(fact for fact in facts if fact), model.licence + (", gated" if model.gated else "")


def _row(path: Path) -> tuple[str, ...]:
    try:
        recipe = loading.load(path).recipe
    except InputError:
        return (path.stem, f"has problems: 'invoke check {path.stem}' tells them", "", "", "")
    return (recipe.name, recipe.summary, _model(recipe), _data(recipe), _last(path))


def _model(recipe: Recipe) -> str:
    source = recipe.model.source
    return getattr(source, "repo", None) or getattr(source, "path", None) or source.kind


def _data(recipe: Recipe) -> str:
    return ", ".join(_source(part.source) for part in recipe.data.sources)


def _source(source: object) -> str:
    paths = getattr(source, "paths", None)
    names = (", ".join(paths) if paths else None, *(getattr(source, name, None) for name in ("repo", "name", "url")))
    return next(name for name in names if name)


def _last(path: Path) -> str:
    """What the committed lock says of training and of the recipe's questions, or that there is none."""
    try:
        stages = locks.read(locks.path_of(path)).get("stages", {})
    except InputError:
        return "the lock is damaged"
    if not stages:
        return "never been run"
    entries = [stages[name] for name in ("evaluate", "train") if name in stages]
    metrics = {name: wanted["value"] for entry in entries for name, wanted in entry["metrics"].items()}
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if not name.endswith("_base"))


def steps(planned: Sequence[Step]) -> str:
    """A table of what would happen to each stage, and why."""
    rows = [(step.stage.name, step.action, step.reason, step.key[:12]) for step in planned]
    return table(rows, ("stage", "would", "why", "key"))
