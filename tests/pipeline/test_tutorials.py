"""The recipes of the tutorials on their real data, prepared with the starter's tokenizer in place of the fetched model's."""

from pathlib import Path

import pytest

from tunestation import app
from tunestation.settings import PROJECT
from tunestation.work import open_recipe

SHARED = Path(__file__).parents[2] / "../shared/data"
STARTER = ["model.source={kind: starter}", "template=chatml"]
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside this checkout")


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Prepares a recipe of the project on volumes of its own; returns the facts."""
    monkeypatch.setenv("TUNE_HOME", str(tmp_path))
    monkeypatch.setenv("TUNE_RECIPES", str(PROJECT / "recipes"))
    monkeypatch.setenv("TUNE_DATASETS", str(SHARED.resolve()))
    for name in ("TUNE_MODELS", "TUNE_RUNS", "TUNE_CACHE", "TUNE_OFFLINE"):
        monkeypatch.delenv(name, raising=False)

    def prepare(name: str, *assignments: str) -> dict:
        app.stage(name, "prepare", [*STARTER, *assignments])
        return open_recipe(name, [*STARTER, *assignments]).records()["prepare"]["facts"]

    return prepare


@needs_shared
def test_no_row_of_the_career_coach_is_lost(prepared):
    facts = prepared("internlm2-7b-career-coach", "train.max_tokens=2048")
    assert (facts["rows"], facts["dropped"], facts["truncated"]) == (246, 0, 0)


@needs_shared
def test_every_document_of_the_pretraining_recipe_is_learned_from_its_first_token_to_its_last(prepared):
    facts = prepared("internlm2-1.8b-pretrain")
    assert facts["rows"] == 300 and facts["dropped"] == 0
    assert facts["labelled_tokens"] == facts["tokens"] > 0 and facts["held_out_labelled_tokens"] == facts["held_out_tokens"] > 0


def test_the_assistant_is_prepared_from_the_files_of_the_project(prepared, monkeypatch, tmp_path):
    monkeypatch.setenv("TUNE_DATASETS", str(tmp_path))
    facts = prepared("internlm2-1.8b-assistant")
    assert facts["rows"] == 62 and facts["dropped"] == 0


@pytest.mark.parametrize("path", sorted((PROJECT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_project_opens(path):
    assert open_recipe(str(path), incomplete=True).recipe.summary
