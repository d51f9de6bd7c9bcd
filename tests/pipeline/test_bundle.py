"""A bundle runs where there is no network and nothing else of the project."""

import os
import shutil
import subprocess
import sys

import pytest
from station import recipe, sums


@pytest.fixture(scope="module")
def packed(station, tmp_path_factory):
    """A bundle of the tiny recipe, with a template beside it, and what was said of it."""
    (station.recipes / "chat.jinja").write_text((station.model / "chat_template.jinja").read_text())
    station.write(recipe(name="packed", template="chat.jinja"))
    folder = tmp_path_factory.mktemp("bundles") / "packed"
    return folder, station.invoke("bundle", "packed", "--to", str(folder), "--no-wheels")


def inside(folder, *words):
    """`invoke WORDS...` in a bundle, as on a machine that knows no other checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TUNE_") and name != "PYTHONPATH"}
    environment = kept | {"TUNE_RUNNER": "here", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "invoke", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_it_holds_the_recipe_its_files_its_model_and_the_code_and_says_how_to_run_it(packed, station):
    folder, said = packed
    assert f"digests in SHA256SUMS. How to run it: {folder / 'BUNDLE.md'}" in said
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"tasks.py", "src/tunestation/app.py", "docker/requirements.txt"} <= there
    assert {"recipes/packed.yaml", "recipes/rows.jsonl", "recipes/chat.jinja", "volumes/models/tiny/model.safetensors"} <= there
    assert not [name for name in there if "__pycache__" in name or name.startswith("recipes/tiny")]
    assert "invoke reproduce packed --offline" in (folder / "BUNDLE.md").read_text()


def test_every_file_has_a_digest(packed):
    folder, _ = packed
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, check=False).returncode == 0
    listed = {line[66:] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there - listed == {"SHA256SUMS"}


def test_what_was_fetched_is_not_fetched_again_and_the_data_come_out_the_same(packed, station, tmp_path):
    folder = tmp_path / "elsewhere"
    shutil.copytree(packed[0], folder)
    done = inside(folder, "reproduce", "packed", "--offline", "--until", "prepare")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines() if line.startswith(("fetch ", "prepare "))][:2] == [
        ["fetch", "skipped"],
        ["prepare", "done"],
    ]
    (prepared,) = folder.glob("volumes/runs/packed/prepare-*")
    assert sums(prepared) == sums(station.make("prepare", name="packed"))


def test_a_folder_that_holds_something_is_left_alone(packed, station):
    said = station.invoke("bundle", "packed", "--to", str(packed[0]), "--no-wheels", code=2)
    assert "there is something in this folder already. Name a new one with --to." in said


def test_a_model_that_was_changed_since_it_was_fetched_is_fetched_again_first(station, tmp_path):
    station.write(recipe(name="changed", model={"source": {"kind": "folder", "path": "other"}}))
    shutil.copytree(station.model, station.model.with_name("other"))
    station.make("fetch", name="changed")
    (station.model.with_name("other") / "generation_config.json").write_text("{}")
    said = station.invoke("bundle", "changed", "--to", str(tmp_path / "b"), "--no-wheels")
    assert "[fetch] run: models:other/generation_config.json is missing or was changed" in said
    assert (tmp_path / "b" / "volumes" / "models" / "other" / "generation_config.json").read_text() == "{}"
