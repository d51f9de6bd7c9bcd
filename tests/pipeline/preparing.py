"""A recipe's data, prepared in this process with a tokenizer trained on the spot."""

import hashlib
import json
from pathlib import Path

import pytest
from datasets import load_from_disk

from tunestation.data.encoding import IGNORE
from tunestation.data.tokenizers import load_tokenizer
from tunestation.errors import InputError
from tunestation.pipeline.job import Job
from tunestation.pipeline.volumes import Volumes
from tunestation.stages.prepare import run

COLUMNS = {"kind": "columns", "input": "q", "output": "a", "system": None}
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


class Bench:
    """A recipe folder, the fetch stage's folder, and an output folder for each run."""

    def __init__(self, root: Path, datasets: Path | None = None):
        self.root, self.runs = root, 0
        self.volumes = Volumes(root / "models", datasets or root / "datasets", root / "recipe", root / "cache")
        for folder in (root / "recipe", root / "datasets", root / "models", root / "fetch"):
            folder.mkdir()
        self.manifest(None, [])

    def manifest(self, model: str | None, data: list) -> None:
        described = {"ref": model, "repo": None, "commit": None, "files": {}} if model else None
        (self.root / "fetch/manifest.json").write_text(json.dumps({"model": described, "data": data}))

    def rows(self, name: str, rows: list[dict]) -> dict:
        """Write a file beside the recipe; returns a part of questions and answers that reads it."""
        (self.root / "recipe" / name).write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
        return part(f"recipe:{name}")

    def run(self, *parts: dict, fetched: list | None = None, model: str | None = None, **settings):
        """Returns (facts, output folder)."""
        self.runs += 1
        self.manifest(model, fetched or [[] for _ in parts])
        output = self.root / f"out{self.runs}"
        output.mkdir()
        params = {
            "parts": list(parts), "template": "chatml", "max_tokens": 64, "packing": True, "max_dropped": 0.0,
            "held_out_fraction": 0.0, "seed": 7, "tokenizer": None if model else {"vocab_size": 400},
        }  # fmt: skip
        job = Job("prepare", "", {}, {"fetch": self.root / "fetch"}, output, self.volumes, {})
        return run(params | settings, job).facts, output

    def error(self, *parts: dict, **settings) -> str:
        with pytest.raises(InputError) as caught:
            self.run(*parts, **settings)
        return str(caught.value)


def part(*refs: str, **changes) -> dict:
    files = [{"ref": ref, "sha256": None} for ref in refs]
    return {"files": files, "generator": None, "format": COLUMNS, "system": None, "variables": {}, "repeat": 1} | changes


def numbers(count: int) -> list[dict]:
    return [{"q": f"What comes after {n}?", "a": f"It is {n + 1}, {WORDS[n % 10]}."} for n in range(count)]


def answers(folder: Path, output: Path) -> list[str]:
    """The learned texts of a data set, one for each answer."""
    tokenizer = load_tokenizer(output / "tokenizer", "tokenizer")
    found = []
    for row in load_from_disk(str(folder)):
        text = tokenizer.decode([label for label in row["labels"] if label != IGNORE])
        found += text.split("<|im_end|>")[:-1]
    return found


def digests(output: Path) -> dict[str, str]:
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in output.rglob("*") if path.is_file()}
