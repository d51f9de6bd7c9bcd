"""What the sources of a recipe stand for today: commits of hub repositories, digests of local files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunestation.catalog.models import find
from tunestation.errors import Problem
from tunestation.models.folder import family_in
from tunestation.models.native.registry import raised_versions
from tunestation.pipeline.digest import Digests
from tunestation.pipeline.volumes import Volumes
from tunestation.recipe.schema import TEMPLATE_FILE, Recipe
from tunestation.recipe.sources import FileSource, FolderModel, GeneratorSource, HubModel, HubSource, UrlSource

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""The files of an adapter, as peft writes them."""


@dataclass(frozen=True)
class Inputs:
    """The outside world of a recipe, as far as it shapes results."""

    model_commit: str | None
    """Commit of a hub model; None while it is not pinned."""
    model_ref: str | None
    """Reference of a model folder."""
    conversions: dict[str, int]
    """Conversions that the model may go through, with versions: those whose version was raised since the first."""
    adapter: dict | None
    """Reference and digests {ref, files: name -> SHA-256} of an adapter that training begins with."""
    fetched: tuple[dict, ...]
    """What `fetch` brings, one a data part."""
    parts: tuple[dict, ...]
    """Files (with digests) or generator of each data part; empty where `fetch` brings them."""
    checks: tuple[dict, ...]
    """The same for each check of the evaluation."""
    template_text: str | None
    """The text of a chat template beside the recipe."""
    problems: tuple[Problem, ...]
    """Local files and folders that are not there."""
    pending: tuple[str, ...]
    """What the network has to be asked for before keys are final, in words."""


Where = Callable[[tuple[str | int, ...]], str]
"""Turns the place of a field into `file:line`."""


def look(recipe: Recipe, where: Where, pins: dict, volumes: Volumes, digests: Digests) -> Inputs:
    """Find and digest what `recipe` names; `pins` maps `pin_name(source)` to a commit or a digest. Touches no network."""
    problems: list[Problem] = []
    sources = [part.source for part in recipe.data.sources]
    parts = [_local(source, where(("data", "sources", n, "source")), volumes, digests, problems) for n, source in enumerate(sources)]
    checks = recipe.evaluate.checks
    asked = [_local(check.source, where(("evaluate", "checks", n, "source")), volumes, digests, problems) for n, check in enumerate(checks)]
    model = recipe.model.source
    return Inputs(
        model_commit=pins.get(pin_name(model)) if isinstance(model, HubModel) else None,
        model_ref=_folder(model, where(("model", "source")), volumes, problems) if isinstance(model, FolderModel) else None,
        conversions=_conversions(model, volumes),
        adapter=_adapter(recipe.model.adapter, where(("model", "adapter")), volumes, digests, problems) if recipe.model.adapter else None,
        fetched=tuple(_to_fetch(source, pins) for source in sources),
        parts=tuple(parts),
        checks=tuple(asked),
        template_text=_template(recipe.template, where(("template",)), volumes, problems),
        problems=tuple(problems),
        pending=tuple(pin_name(source) for source in unpinned_sources(recipe) if pin_name(source) not in pins),
    )


Pinned = HubModel | HubSource | UrlSource


def unpinned_sources(recipe: Recipe) -> list[Pinned]:
    """Everything of a recipe of which only the network knows what it stands for: a commit, or a digest that it does not name."""
    every: Sequence[object] = [recipe.model.source, *(part.source for part in recipe.data.sources)]
    hubs = (HubModel, HubSource)
    return [source for source in every if isinstance(source, hubs) or (isinstance(source, UrlSource) and not source.sha256)]


def pin_name(source: Pinned) -> str:
    """How a lock calls a source: `model huggingface:owner/name@main`, or `file https://...`."""
    if isinstance(source, UrlSource):
        return f"file {source.url}"
    kind = "model" if isinstance(source, HubModel) else "dataset"
    return f"{kind} {source.hub}:{source.repo}@{source.revision}"


def _conversions(source: object, volumes: Volumes) -> dict[str, int]:
    """What a hub model is says the catalogue; of one that is not there only fetching tells, so that any family may be meant."""
    if isinstance(source, HubModel):
        known = find(source.repo)
        return raised_versions(known.shape.family if known else None)
    ref = volumes.find(source.path, "recipe", "models") if isinstance(source, FolderModel) else None
    family = family_in(volumes.path(ref)) if ref else None
    return raised_versions(family.name if family else "") if ref else {}


def _to_fetch(source: object, pins: dict) -> dict:
    if isinstance(source, HubSource):
        commit = pins.get(pin_name(source), source.revision)
        return {"kind": "hub", "hub": source.hub, "repo": source.repo, "commit": commit, "files": list(source.files)}
    if isinstance(source, UrlSource):
        return {"kind": "url", "url": source.url, "sha256": source.sha256 or pins.get(pin_name(source), "unknown")}
    return {"kind": "local"}


def _local(source: object, where: str, volumes: Volumes, digests: Digests, problems: list[Problem]) -> dict:
    if isinstance(source, GeneratorSource):
        return {"files": [], "generator": source.model_dump(exclude={"kind"})}
    if not isinstance(source, FileSource):
        return {"files": [], "generator": None}
    files = []
    for path in source.paths:
        ref = volumes.find(path, "recipe", "datasets")
        if ref is None or not volumes.path(ref).is_file():
            remedy = f"It was looked for in {volumes.recipe} and in {volumes.datasets} (TUNE_DATASETS)."
            problems.append(Problem(f"there is no file '{path}'.", where, remedy))
        else:
            files.append({"ref": ref, "sha256": digests.of(volumes.path(ref))})
    return {"files": files, "generator": None}


def _template(name: str, where: str, volumes: Volumes, problems: list[Problem]) -> str | None:
    """The text of the template file `name`; None for a built-in name."""
    if not name.endswith(TEMPLATE_FILE):
        return None
    path = volumes.path(f"recipe:{name}")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        problems.append(Problem(f"there is no template '{name}'.", where, f"It was looked for in {volumes.recipe}."))
    except (UnicodeDecodeError, OSError) as error:
        problems.append(Problem(f"the template '{name}' cannot be read: {error}.", where, "Save it as a UTF-8 text."))
    return None


def _adapter(path: str, where: str, volumes: Volumes, digests: Digests, problems: list[Problem]) -> dict | None:
    ref = volumes.find(path, "recipe", "models")
    missing = [name for name in ADAPTER if ref and not volumes.path(f"{ref}/{name}").is_file()]
    if ref and not missing:
        return {"ref": ref, "files": {name: digests.of(volumes.path(f"{ref}/{name}")) for name in ADAPTER}}
    what = f"the adapter '{path}' has no {' and no '.join(missing)}." if ref else f"there is no adapter '{path}'."
    remedy = f"It was looked for in {volumes.recipe} and in {volumes.models} (TUNE_MODELS), where 'invoke import-xtuner' writes."
    problems.append(Problem(what, where, remedy))
    return None


def _folder(source: FolderModel, where: str, volumes: Volumes, problems: list[Problem]) -> str | None:
    ref = volumes.find(source.path, "recipe", "models")
    if ref is None:
        remedy = f"It was looked for in {volumes.recipe} and in {volumes.models} (TUNE_MODELS)."
        problems.append(Problem(f"there is no model folder '{source.path}'.", where, remedy))
    return ref
