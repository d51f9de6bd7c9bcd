"""README.md of a merged model: where it comes from, in the form that model hubs read."""

from __future__ import annotations

from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO

from tunestation.fetching.manifest import FetchedModel, data_of
from tunestation.pipeline.digest import RECORD
from tunestation.pipeline.files import read_json

Rows = list[tuple[str, str]]


def card(name: str, base: FetchedModel | None, licences: list[str], needs: dict[str, Path], proof: Rows) -> str:
    """The text; `needs` are the results that the merge was made of, `proof` what the comparison with base + adapter found."""
    train, prepare = (read_json(needs[stage] / RECORD) for stage in ("train", "prepare"))
    method = train["params"]["settings"]["method"]
    parts = [
        f"---\n{_head(base, licences, method)}---",
        f"# {name}\n\n{_begin(base, method)} Made with Tunestation from the recipe `{name}`; its lock file says how to make it again.",
        "## Data\n\n" + "\n".join(_data(prepare, needs["fetch"])),
        "## Training\n\n" + _table(_training(train)),
        "## The merge beside what was trained\n\n" + _table(proof) if proof else "",
        "## Licence\n\n" + _licence(base, licences),
        "## Versions\n\n" + _table([(tool, version) for tool, version in sorted(train["tools"].items())]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(base: FetchedModel | None, licences: list[str], method: str) -> str:
    head: dict = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["tunestation", method]}
    if base and base.repo:
        head["base_model"] = base.repo
    if licences:
        head |= {"license": "other", "license_link": licences[0]}
    text = StringIO()
    YAML().dump(head, text)
    return text.getvalue()


def _begin(base: FetchedModel | None, method: str) -> str:
    if base is None:
        return "Trained from new weights."
    commit = f" at commit `{base.commit}`" if base.commit else ""
    return f"`{base.name}`{commit}, tuned with method `{method}`."


def _data(prepare: dict, fetch: Path) -> list[str]:
    lines = []
    for part, fetched in zip(prepare["params"]["parts"], data_of(fetch), strict=True):
        lines += [f"- `{file['ref']}`, SHA-256 `{file['sha256']}`" for file in (*part["files"], *fetched)]
        if part["generator"]:
            lines.append(f"- generated: `{part['generator']}`")
    facts = prepare["facts"]
    counted = [f"{facts[name]:,} {name}" for name in ("rows", "conversations", "tokens") if name in facts]
    return [*lines, "", f"{', '.join(counted)}."]


def _training(train: dict) -> Rows:
    settings = train["params"]["settings"]
    names = ("method", "epochs", "max_tokens", "global_batch_size", "learning_rate", "schedule", "optimizer", "seed")
    rows = [(name, str(settings[name])) for name in names]
    if settings["method"] != "full":
        rows += [(f"LoRA {name}", str(settings["lora"][name])) for name in ("rank", "alpha", "dropout")]
    measured = [(name.replace("_", " "), f"{value:.4f}") for name, value in train["metrics"].items()]
    return [*rows, ("steps", f"{train['facts']['steps']:,}"), *measured]


def _licence(base: FetchedModel | None, licences: list[str]) -> str:
    if licences:
        return f"That of the base model, which is in this folder: {', '.join(f'[{name}]({name})' for name in licences)}."
    return f"That of the base model: see `{base.name}`." if base else "Chosen by whoever made this model."


def _table(rows: Rows) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
