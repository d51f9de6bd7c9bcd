"""What `invoke inspect` runs in a process of its own: no model, no GPU; the data as the model will see it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tunestation.data.encoding import Encoder
from tunestation.data.inspection import Inspector, RowView, chosen, pack_fills
from tunestation.data.inspection_page import Overview, page
from tunestation.data.tokenizers import load_tokenizer
from tunestation.errors import InputError
from tunestation.fetching.manifest import FetchedModel, data_of, write_manifest
from tunestation.models.folder import is_weight, model_files
from tunestation.pipeline.digest import file_digest, text_digest
from tunestation.pipeline.files import read_json, write_json
from tunestation.pipeline.job import Job, Result
from tunestation.pipeline.stage import canonical
from tunestation.pipeline.volumes import Volumes
from tunestation.recipe.base import Part, Positive
from tunestation.report import table
from tunestation.stages import prepare

ON_PAGE = 1000
"""Rows on the page at most."""
COLOURS = {"context": ("", ""), "learned": ("\033[32m", "\033[0m"), "lost": ("\033[31;9m", "\033[0m")}
SIGNS = {"context": ("", ""), "learned": ("⟦", "⟧"), "lost": ("⟨cut off: ", "⟩")}
"""How a terminal, and a file or pipe, shows the states of a text."""


class Params(Part):
    """What to look at."""

    recipe: str
    """Its name."""
    prepare: dict
    """The parameters of the stage prepare."""
    row: Positive | None = None
    """Show this row in the terminal instead of writing the page."""
    tokens: bool = False
    """Show its tokens too."""
    tokenizer: str | None = None
    """The folder with the model's tokenizer; None if it is not on this machine, or made from the data."""


def run(params: dict, job: Job) -> Result:
    """Show a row, or all numbers and the page; works from the result of `prepare` or makes one in `job.output`."""
    asked = Params.model_validate_json(json.dumps(params))
    settings = prepare.Params.model_validate_json(json.dumps(asked.prepare))
    prepared, fetched, volumes, told = _prepared(asked, job)
    tokenizer = load_tokenizer(prepared / "tokenizer", "tokenizer")
    inspector = Inspector(prepared / prepare.LEDGER, Encoder(tokenizer, settings.train_on), settings.max_tokens)
    outcomes = prepare.outcomes(settings, prepare.manifest_of(fetched), volumes, prepare.silently)
    if asked.row:
        _show(next(inspector.views(outcomes, {asked.row}), None), asked, inspector)
    else:
        _write_page(asked, settings, prepared, inspector, list(inspector.views(outcomes, chosen(inspector.lines(), ON_PAGE))), told, job)
    return Result()


def _prepared(asked: Params, job: Job) -> tuple[Path, Path, Volumes, Result]:
    """(result of prepare, result of fetch, where references point, what prepare reported)."""
    if "prepare" in job.needs:
        record = read_json(job.needs["prepare"] / "stage.json")
        return job.needs["prepare"], job.needs["fetch"], job.volumes, Result(record["facts"], observed=record["observed"])
    made, fetched, told = job.output / "prepare", job.output / "fetch", job.output / "told.json"
    identity = _identity(asked)
    if told.is_file() and (before := read_json(told))["identity"] == identity:
        return made, fetched, _volumes(asked, job), Result(before["facts"], observed=before["observed"])
    shutil.rmtree(job.output, ignore_errors=True)
    made.mkdir(parents=True)
    fetched.mkdir()
    _scratch_manifest(asked, job, fetched)
    print(f"'{asked.recipe}' is not prepared with these settings: it is done now, for a look.")
    result = prepare.run(asked.prepare, Job("prepare", "", {}, {"fetch": fetched}, made, _volumes(asked, job), {}))
    write_json(told, {"identity": identity, "facts": result.facts, "observed": result.observed})
    return made, fetched, _volumes(asked, job), result


def _identity(asked: Params) -> str:
    """What a look depends on: the parameters of prepare, digests of local data among them, and the tokenizer's files."""
    files = _small_files(Path(asked.tokenizer)) if asked.tokenizer else []
    return text_digest(canonical([asked.prepare, [file_digest(path) for path in files]]))


def _volumes(asked: Params, job: Job) -> Volumes:
    """Where references point: `models:` is where the tokenizer was made readable."""
    return replace(job.volumes, models=job.output / "models") if asked.tokenizer else job.volumes


def _scratch_manifest(asked: Params, job: Job, fetched: Path) -> None:
    """Write what `fetch` would have written, with a tokenizer in the model's place."""
    if asked.tokenizer:
        _take(Path(asked.tokenizer), job.output / "models" / "tokenizer")
    elif not asked.prepare["tokenizer"]:
        what = f"the model of '{asked.recipe}' is not on this machine."
        raise InputError(what, remedy=f"Give --tokenizer FOLDER with its tokenizer files, or run 'invoke fetch {asked.recipe}'.")
    parts = asked.prepare["parts"]
    data = data_of(job.needs["fetch"]) if "fetch" in job.needs else [[] for _ in parts]
    away = [n for n, (part, files) in enumerate(zip(parts, data, strict=True)) if not (part["files"] or part["generator"] or files)]
    if away:
        what = f"the data of data.sources[{away[0]}] is not on this machine."
        raise InputError(what, remedy=f"Run 'invoke fetch {asked.recipe}' first.")
    write_manifest(fetched, FetchedModel("models:tokenizer", None, None, {}) if asked.tokenizer else None, data)


def _small_files(folder: Path) -> list[Path]:
    """What counts in a model folder, but for the weights. Raises InputError if it is no folder."""
    if not folder.is_dir():
        raise InputError("is not a folder.", str(folder), "Give one that holds tokenizer.json, or a vocabulary and config.json.")
    return [path for path in model_files(folder) if not is_weight(path.name)]


def _take(folder: Path, into: Path) -> None:
    """Copy the small files of a model folder; a vocabulary that transformers does not read becomes tokenizer.json."""
    from tunestation.models.native.registry import family_of
    from tunestation.models.native.vocabularies import chat_template, write_tokenizer

    into.mkdir(parents=True)
    for path in _small_files(folder):
        shutil.copyfile(path, into / path.name)
    names = {"config": "config.json", "tokenizer": "tokenizer_config.json"}
    files = {kind: read_json(into / name) if (into / name).is_file() else {} for kind, name in names.items()}
    family = family_of(files["config"])
    if family and not (into / "tokenizer.json").is_file():
        write_tokenizer(family, into, files["config"], chat_template(family, files["config"], files), into)


def _show(view: RowView | None, asked: Params, inspector: Inspector) -> None:
    """One row in the terminal, with what is learned in colour."""
    if view is None:
        count = sum(1 for _ in inspector.lines())
        raise InputError(f"there is no row {asked.row}: the sources have {count:,} rows.", "--row")
    signs = COLOURS if sys.stdout.isatty() else SIGNS
    facts = [f"{name.replace('_', ' ')}: {value}" for name, value in view.line.items() if name not in ("where", "fate", "why")]
    fate = f"{view.line['fate']}: {view.line['why']}" if "why" in view.line else view.line["fate"]
    print(f"row {view.number} · {view.line['where']} · {' · '.join([fate, *facts])}\n")
    print("".join(f"{signs[state][0]}{text}{signs[state][1]}" for text, state in view.segments))
    if asked.tokens:
        print("\n" + table([(str(token.id), repr(token.text), token.state) for token in view.tokens], ("id", "token", "is")))


def _write_page(
    asked: Params, settings: prepare.Params, prepared: Path, inspector: Inspector, rows: list[RowView], told: Result, job: Job
) -> None:
    learned = [line for line in inspector.lines() if line.get("learned")]
    warnings = told.observed.get("warnings", [])
    facts = list(_facts(told.facts))
    overview = Overview(
        title=f"{asked.recipe}: the data",
        summary=f"Template {settings.template}, {settings.max_tokens:,} tokens at most, learned: {settings.train_on}.",
        warnings=warnings,
        facts=facts,
        lengths=[line["tokens"] for line in learned],
        shares=[line["learned"] / (line["tokens"] - line.get("lost", 0)) for line in learned],
        fills=pack_fills(prepared / "train"),
        capacity=settings.max_tokens,
        rows=sum(1 for _ in inspector.lines()),
    )
    path = job.output.with_name("inspect.html")
    path.write_text(page(overview, rows), encoding="utf-8")
    print(table(facts))
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"\nThe page: {path}\nOne row here: invoke inspect {asked.recipe} --row 1")


def _facts(facts: dict) -> Iterator[tuple[str, str]]:
    """The numbers of the whole data set, in words; what is 0 only where 0 is news."""
    share = facts["labelled_tokens"] / facts["tokens"]
    yield from [("rows", f"{facts['rows']:,}"), ("seen in an epoch", f"{facts['conversations']:,}")]
    yield from [("turns", f"{facts['turns']:,}"), ("tokens to train on", f"{facts['tokens']:,}")]
    yield from [("learned tokens", f"{facts['labelled_tokens']:,} ({share:.1%})"), ("longest row", f"{facts['longest']:,} tokens")]
    yield from [("stop tokens learned", f"{facts['stop_tokens']:,}"), ("packs", f"{facts['packs']:,} ({facts['fill']:.1%} full)")]
    for name in ("dropped", "truncated", "lost_tokens", "split", "repaired", "duplicates", "empty_answers", "blank", "left_out"):
        if facts[name] or name in ("dropped", "truncated"):
            yield name.replace("_", " "), f"{facts[name]:,}"
    if facts["held_out_packs"]:
        yield "held out", f"{facts['held_out_tokens']:,} tokens in {facts['held_out_packs']:,} packs"
