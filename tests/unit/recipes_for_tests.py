"""A small recipe and the machine that it is opened on."""

import json
from pathlib import Path

from tunestation.work import Work, open_recipe

SMALL = """\
schema_version: 1
name: small
summary: A small recipe.
model:
  source: {kind: starter}
data:
  sources:
    - source: {kind: files, paths: [rows.jsonl]}
      repeat: 2
template: chatml
train:
  epochs: 1
  lora: {rank: 8}
evaluate:
  prompts: [Who are you?]
"""
"""Lines are counted on in tests: model 4, data 6, source 8, template 10, train 11."""

ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


def write_rows(path: Path, rows: list) -> Path:
    """A JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


class Bench:
    """A folder of recipes and the volumes beside it, the only ones that TUNE_* variables name."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder = folder
        self.recipes = folder / "recipes"
        self.environment = {"TUNE_HOME": str(folder / "home"), "TUNE_RECIPES": str(self.recipes)}
        for name in ("TUNE_MODELS", "TUNE_DATASETS", "TUNE_RUNS", "TUNE_CACHE", "TUNE_OFFLINE", "TUNE_PROCESSES"):
            monkeypatch.delenv(name, raising=False)
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        write_rows(self.recipes / "rows.jsonl", [ROW, ROW])

    def recipe(self, *changes: tuple[str, str], name: str = "small", text: str = SMALL) -> Path:
        """Write the small recipe with texts replaced by others."""
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path = self.recipes / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    def open(self, *changes: tuple[str, str], sets: tuple[str, ...] = ()) -> Work:
        """Open the small recipe with these changes."""
        return open_recipe(str(self.recipe(*changes)), sets, incomplete=True)
