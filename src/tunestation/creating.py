"""`invoke new`: a complete, commented recipe from a model, data sets and a method."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path, PurePath

from tunestation import settings
from tunestation.catalog.datasets import Dataset, dataset, datasets
from tunestation.catalog.models import Model, find, models
from tunestation.data.readers import READERS
from tunestation.data.readers.text import plain_suffix
from tunestation.errors import InputError
from tunestation.models.experts import quantise_problem
from tunestation.models.native.registry import EXPERTS
from tunestation.recipe import loading
from tunestation.recipe.base import Part, stays_inside

METHODS = {
    "qlora": "adapters over a 4-bit base: the least memory",
    "lora": "adapters over a bfloat16 base",
    "full": "every weight: the most memory",
}
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
PLAIN = re.compile(r"[A-Za-z_][\w./-]*")
COMMENTS = 38
"""Column in which comments begin, where the line is not longer."""
Line = tuple[str, str]
"""A line of the recipe and its comment."""
OTHER_MODELS = "Name 'starter', one of 'invoke recipes --models', another repository as 'owner/name', or a folder below TUNE_MODELS."
LEARNING_RATES = {"qlora": "2e-4", "lora": "2e-4", "full": "2e-5"}


def new(name: str, model: str, data: Sequence[str], method: str) -> Path:
    """Write `<name>.yaml` into the recipe folder; returns where. Raises InputError for anything that is not known."""
    if method not in METHODS:
        raise InputError(f"there is no method '{method}'.", "--method", f"Choose from: {', '.join(METHODS)}.")
    if not NAME.fullmatch(name):
        raise InputError(f"'{name}' is no name for a recipe.", remedy="Use small letters, digits, '.', '_' and '-'.")
    if not model or not data:
        raise InputError("a recipe needs a model and data.", "--model and --data", "See 'invoke recipes --datasets' for data sets.")
    path = settings.load().recipes / f"{name}.yaml"
    if path.exists():
        raise InputError("this recipe exists already.", str(path), "Choose another name, or edit it.")
    sources = [_source(each) for each in data]
    _refuse_method(model, method)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_recipe(name, model, sources, method), encoding="utf-8")
    try:
        loading.load(path)
    except InputError:
        path.unlink()
        raise
    return path


def _source(name: str) -> Dataset:
    """A data set of the catalogue, or a file of one's own, by its path from here, from the recipes or from the dataset volume."""
    if plain_suffix(PurePath(name)) in READERS:
        kind = "text" if plain_suffix(PurePath(name)) == ".txt" else "auto"
        name = _as_recipes_see_it(name)
        try:
            stays_inside(name)
        except ValueError as error:
            raise InputError(f"'{name}' {error}", "--data") from None
        _refuse_absent(name)
        return Dataset.model_validate({"summary": name, "paths": (name,), "format": {"kind": kind}, "columns": ("text",)})
    found = dataset(name)
    if found.format.kind == "preference":
        raise InputError(f"'{name}' holds preference pairs; training on pairs comes later.", "--data", "Choose another data set.")
    return found


def _as_recipes_see_it(name: str) -> str:
    """`recipes/a.xlsx`, typed in the checkout, is `a.xlsx` beside the recipe; what is in neither of the two folders stays as it is."""
    file, here = Path(name).absolute(), settings.load()
    folders = [folder for folder in (here.recipes, here.datasets) if file.is_file() and file.is_relative_to(folder)]
    return file.relative_to(folders[0]).as_posix() if folders else name


def _refuse_absent(name: str) -> None:
    folders = (settings.load().recipes, settings.load().datasets)
    if not any((folder / name).is_file() for folder in folders):
        remedy = f"Put it into {folders[0]} or {folders[1]} (TUNE_DATASETS)."
        raise InputError(f"there is no file '{name}' where recipes look for data.", "--data", remedy)


def _recipe(name: str, model: str, sources: Sequence[Dataset], method: str) -> str:
    objectives = {source.objective for source in sources}
    if len(objectives) > 1:
        raise InputError("documents and conversations cannot be mixed in one recipe.", "--data", "Name data sets of one kind.")
    objective = objectives.pop()
    lines = [
        ("# yaml-language-server: $schema=recipe.schema.json", ""),
        (f"# Every field with its default: docs/recipe.md, or 'invoke check {name} --resolved'.", ""),
        ("schema_version: 1", ""),
        (f"name: {name}", ""),
        (f"summary: {_summary(model, sources)}", ""),
        *_model(model),
        ("data:", ""),
        ("  sources:", "repeat, weight and limit say how much of each is seen"),
        *(line for source in sources for line in _data(source)),
        ("  max_dropped: 0.01", "share of rows that may be untrainable before prepare stops"),
        (f"template: {_template(model, objective)}", "auto is the model's own chat template"),
        *_train(method, objective),
        *REST,
    ]
    return "".join(f"{text:<{COMMENTS}}  # {comment}\n" if comment else f"{text}\n" for text, comment in lines)


def _summary(model: str, sources: Sequence[Dataset]) -> str:
    text = f"Tune {PurePath(model).name} on {', '.join(_called(source) for source in sources)}."
    return _quoted(text) if ": " in text or " #" in text else text


def _called(source: Dataset) -> str:
    return next((name for name, known in datasets().items() if known is source), source.summary)


def _train(method: str, objective: str) -> list[Line]:
    adapters = [("  lora: {rank: 64, alpha: 16, dropout: 0.1}", "")] if method != "full" else []
    return [
        ("train:", ""),
        (f"  method: {method}", METHODS[method]),
        (f"  objective: {objective}", "sft learns answers; pretrain learns every token of documents"),
        ("  epochs: 3", ""),
        ("  max_tokens: 2048", "longest row, and the size of a pack"),
        ("  global_batch_size: 16", "packs in one step, on any number of GPUs"),
        (f"  learning_rate: {LEARNING_RATES[method]}", ""),
        *adapters,
        ("  seed: 42", ""),
    ]


REST: list[Line] = [
    ("evaluate:", ""),
    ("  fraction: 0.02", "held out of training, for a real loss"),
    ("  every_steps: 100", ""),
    ("  prompts: []", "questions answered before, during and after training"),
    ("export: {dtype: bfloat16, shard_size: 2GB}", ""),
    ("chat: {generation: {temperature: 0.1}}", ""),
    ("runtime: {zero_stage: 2, micro_batch_size: 1}", ""),
]


def _model(model: str) -> list[Line]:
    """`starter`, a folder below the model volume, a name of the catalogue with or without its owner, or `owner/name` of a hub."""
    if model == "starter":
        return [("model:", ""), ("  source: {kind: starter}", "")]
    if _is_folder(model):
        return [("model:", ""), (f"  source: {{kind: folder, path: {model}}}", "below the model volume (TUNE_MODELS)")]
    repo, known = _known(model)
    if known and known.shape.standing == "not possible":
        raise InputError(f"'{repo}' cannot be trained: {known.shape.why_not}.", "--model", "See 'invoke recipes --models'.")
    if not known and model.count("/") != 1:
        raise InputError(f"there is no model '{model}'.", "--model", f"{_nearest(model)}{OTHER_MODELS}")
    hub = ", hub: modelscope" if known and repo == known.modelscope and repo not in models() else ""
    return [("model:", ""), (f"  source: {{kind: hub, repo: {repo}{hub}, revision: main}}", "'invoke pin' writes the commit into the lock")]


def _refuse_method(model: str, method: str) -> None:
    known = _catalogued(model)
    if method == "qlora" and known and known.shape.family in EXPERTS:
        problem = quantise_problem()
        raise InputError(f"the method {problem.what}", "--method", "Choose lora.")


def _is_folder(model: str) -> bool:
    return (settings.load().models / model).is_dir()


def _known(model: str) -> tuple[str, Model | None]:
    """The repository that `model` means, and what the catalogue knows of it: by its whole name on either hub, or by the name alone."""
    alone = [repo for repo in models() if model.lower() in (repo.lower(), repo.partition("/")[2].lower())]
    repo = alone[0] if alone and not find(model) else model
    return repo, find(repo)


def _catalogued(model: str) -> Model | None:
    """What the catalogue knows of `model`; None of the starter and of folders."""
    return None if model == "starter" or _is_folder(model) else _known(model)[1]


def _nearest(model: str) -> str:
    """The catalogue's name that is most like `model`, in a sentence; empty if none is."""
    names = {"starter": "starter"} | {repo.partition("/")[2].lower(): repo for repo in models()}
    near = get_close_matches(model.rpartition("/")[2].lower(), list(names), 1)
    return f"Did you mean '{names[near[0]]}'? " if near else ""


def _template(model: str, objective: str) -> str:
    """As the catalogue says; a base model has no format for conversations of its own."""
    if model == "starter":
        return "chatml"
    known = _catalogued(model)
    if not known or objective == "pretrain":
        return "auto"
    return known.template or "chatml"


def _data(source: Dataset) -> list[Line]:
    said = [source.summary, source.note, f"Licence: {source.licence}" if source.licence else ""]
    lines = [(f"    # {text}", "") for text in said if text]
    if source.repo:
        files = ", ".join(_quoted(name) for name in source.files)
        where = f"kind: hub, repo: {source.repo}, hub: {source.hub}, revision: {source.revision}, files: [{files}]"
    else:
        where = f"kind: files, paths: [{', '.join(_quoted(name) for name in source.paths)}]"
    options = _fields(source.read)
    lines.append((f"    - source: {{{where}}}", ""))
    lines += [(f"      read: {options}", "")] if options != "{}" else []
    return [*lines, (f"      format: {_fields(source.format)}", "")]


def _fields(part: Part) -> str:
    values = part.model_dump(exclude_defaults=True, exclude_none=True)
    return f"{{{', '.join(f'{name}: {_quoted(str(value))}' for name, value in values.items())}}}"


def _quoted(text: str) -> str:
    """A YAML scalar; patterns begin with a star, which would be an alias, and some words and digits would be no text."""
    plain = PLAIN.fullmatch(text) and text not in ("true", "false", "null")
    return text if plain else "'" + text.replace("'", "''") + "'"
