"""Data from hubs and the web, models of the user's own, and the commit behind a branch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import COMMIT, Repository, running
from fetch_station import Station, error, model_repository, names, sha256

from tunestation.pipeline.volumes import PACKAGE


@pytest.fixture
def station(tmp_path: Path):
    with running() as hub:
        yield Station(tmp_path, hub)


def test_data_files_come_in_the_order_of_the_recipe(station):
    files = {"data/b.jsonl": b"b", "data/a.jsonl": b"a", "first.csv": b"c", "load.py": b"raise SystemExit"}
    station.hub.datasets["owner/rows"] = Repository(files)
    part = {"kind": "hub", "hub": "huggingface", "repo": "owner/rows", "commit": COMMIT, "files": ["first.csv", "data/*.jsonl"]}
    assert station.run({"kind": "new"}, ({"kind": "local"}, part))["code"] == 0
    manifest, base = station.manifest(), f"datasets:hub/owner--rows/{COMMIT}"
    assert manifest["model"] is None and manifest["data"][0] == []
    expected = ["first.csv", "data/a.jsonl", "data/b.jsonl"]
    assert manifest["data"][1] == [{"ref": f"{base}/{name}", "sha256": sha256(files[name])} for name in expected]


def test_more_files_of_a_known_commit_join_those_that_are_there(station):
    station.hub.datasets["owner/rows"] = Repository({"a.jsonl": b"a", "b.jsonl": b"b"})
    part = {"kind": "hub", "hub": "huggingface", "repo": "owner/rows", "commit": COMMIT}
    station.run({"kind": "new"}, (part | {"files": ["a.jsonl"]},))
    station.run({"kind": "new"}, (part | {"files": ["b.jsonl", "a.jsonl"]},))
    assert len(station.hub.asked("/a.jsonl")) == 1
    assert names(station.root / f"datasets/hub/owner--rows/{COMMIT}") == ["a.jsonl", "b.jsonl"]


def test_a_data_file_that_the_repository_lacks_is_named_with_a_suggestion(station):
    station.hub.datasets["owner/rows"] = Repository({"train.jsonl": b"a"})
    part = {"kind": "hub", "hub": "huggingface", "repo": "owner/rows", "commit": COMMIT, "files": ["trian.jsonl", "*.py"]}
    text = error(station.run({"kind": "new"}, (part,)), 2)
    assert "has no file 'trian.jsonl'" in text and "Did you mean 'train.jsonl'?" in text and "has no file '*.py'" in text


def test_a_repository_that_names_a_file_outside_its_folder_is_refused(station):
    station.hub.datasets["owner/rows"] = Repository({"../../escaped.jsonl": b"a"})
    part = {"kind": "hub", "hub": "huggingface", "repo": "owner/rows", "commit": COMMIT, "files": ["*"]}
    assert "outside its own folder: '../../escaped.jsonl'" in error(station.run({"kind": "new"}, (part,)), 2)
    assert not list(station.root.rglob("escaped*"))


def url_part(station: Station, digest: str) -> dict:
    return {"kind": "url", "url": f"{station.hub.url}/files/rows%20v2.jsonl?x=1", "sha256": digest}


def test_a_url_with_the_right_digest_is_kept_under_its_name(station):
    station.hub.pages["/files/rows v2.jsonl"] = b"{}\n" * 10
    station.environment["HF_TOKEN"] = "hf_test"
    digest = sha256(b"{}\n" * 10)
    assert station.run({"kind": "new"}, (url_part(station, digest),))["code"] == 0
    ref = f"datasets:url/{digest[:16]}/rows_v2.jsonl"
    assert station.manifest()["data"] == [[{"ref": ref, "sha256": digest}]]
    assert {request.authorization for request in station.hub.log} == {None}


def test_a_url_with_another_digest_is_refused_and_removed(station):
    station.hub.pages["/files/rows v2.jsonl"] = b"other"
    text = error(station.run({"kind": "new"}, (url_part(station, "0" * 64),)), 2)
    assert sha256(b"other") in text and "0" * 64 in text and "/files/rows%20v2.jsonl" in text
    assert not list((station.root / "datasets").rglob("*.jsonl*partial")) and not list((station.root / "datasets").rglob("*.jsonl"))


def test_a_url_begun_with_older_content_starts_over(station):
    station.hub.pages["/files/rows v2.jsonl"] = b"new content"
    digest = sha256(b"new content")
    begun = station.root / f"datasets/url/{digest[:16]}/rows_v2.jsonl.partial"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"old")
    assert station.run({"kind": "new"}, (url_part(station, digest),))["code"] == 0
    assert [request.range for request in station.hub.log] == ["bytes=3-", None]


def test_a_fetched_file_that_was_changed_by_hand_is_refused(station):
    digest = sha256(b"mine")
    changed = station.root / f"datasets/url/{digest[:16]}/rows_v2.jsonl"
    changed.parent.mkdir(parents=True)
    changed.write_bytes(b"edited")
    text = error(station.run({"kind": "new"}, (url_part(station, digest),), offline=True), 2)
    assert "was changed" in text and str(changed) in text and "Delete it" in text


def test_a_url_that_does_not_exist_is_named(station):
    text = error(station.run({"kind": "new"}, (url_part(station, "0" * 64),)), 1)
    assert "answers with HTTP status 404" in text and "/files/rows%20v2.jsonl" in text


def test_a_folder_model_is_checked_and_listed(station):
    folder = station.root / "recipes" / "mine"
    folder.mkdir(parents=True)
    for name, content in model_repository().files.items():
        if name in ("config.json", "tokenizer.json", "model.safetensors"):
            (folder / name).write_bytes(content)
    assert station.run({"kind": "folder", "ref": "recipe:mine"})["code"] == 0
    assert station.manifest()["model"]["ref"] == "recipe:mine"
    (folder / "config.json").unlink()
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    text = error(station.run({"kind": "folder", "ref": "recipe:mine"}), 2)
    assert "recipe:mine/config.json" in text and "holds Python code (evil.py)" in text


def test_a_checkout_without_the_starter_says_how_to_make_it(station):
    if (PACKAGE / "starter" / "model").is_dir():
        assert station.run({"kind": "starter"})["volumes"]
    else:
        assert "invoke reproduce starter" in error(station.run({"kind": "starter"}), 1)


RESOLVE = """
import sys
from pathlib import Path
from tunestation.errors import TunestationError
from tunestation.fetching.hubs import resolve
try:
    print(resolve(*sys.argv[1:]))
except TunestationError as error:
    sys.exit(f"{error.exit_code} {error}")
"""


def resolved(station: Station, *asked: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_ENDPOINT": station.hub.url, "HF_HOME": str(station.root), "NO_PROXY": "*"}
    return subprocess.run([sys.executable, "-c", RESOLVE, *asked], check=False, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_branch_is_resolved_to_its_commit(station, kind):
    station.hub.models["owner/tiny"] = station.hub.datasets["owner/tiny"] = model_repository()
    assert resolved(station, "huggingface", kind, "owner/tiny", "main").stdout.strip() == COMMIT


def test_a_commit_resolves_to_itself_without_asking(station):
    assert resolved(station, "huggingface", "model", "owner/tiny", COMMIT).stdout.strip() == COMMIT
    assert station.hub.log == []


def test_a_missing_branch_is_named_with_its_repository(station):
    station.hub.models["owner/tiny"] = model_repository()
    told = resolved(station, "huggingface", "model", "owner/tiny", "v9").stderr
    assert told.startswith("2 ") and "The model 'owner/tiny' has no revision 'v9'" in told
