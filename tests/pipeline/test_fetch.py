"""Models from Hugging Face: what arrives, and what is said when something is wrong. The real huggingface_hub asks a small hub."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fake_hub import COMMIT, Repository, running
from fetch_station import FOLDER, MODEL, Station, error, model_repository, names, sha256


@pytest.fixture
def station(tmp_path: Path):
    with running() as hub:
        yield Station(tmp_path, hub)


def test_a_model_arrives_as_plain_files_with_its_digests(station):
    repository = station.hub.models["owner/tiny"] = model_repository()
    outcome = station.run()
    assert outcome["code"] == 0, outcome
    folder = station.root / FOLDER
    expected = {name: sha256(repository.files[name]) for name in ("config.json", "model.safetensors", "tokenizer.json")}
    assert names(folder) == sorted(expected)
    assert not any(path.is_symlink() for path in folder.iterdir())
    ref = f"models:hub/owner--tiny/{COMMIT}"
    assert station.manifest() == {"model": {"ref": ref, "repo": "owner/tiny", "commit": COMMIT, "files": expected}, "data": []}
    assert outcome["volumes"] == {f"{ref}/{name}": digest for name, digest in expected.items()}
    sizes = sum(len(repository.files[name]) for name in expected)
    assert outcome["facts"] == {"commits": {"owner/tiny": COMMIT}, "files": 3, "bytes": sizes}


def test_python_files_are_neither_fetched_nor_run_and_what_is_left_out_is_said(station):
    station.hub.models["owner/tiny"] = model_repository()
    said = station.run()["said"]
    assert "3 files (modeling_tiny.py, onnx/model.onnx, pytorch_model.bin)" in said
    assert not station.hub.asked("modeling_tiny.py") and not list(station.root.rglob("*.py"))


def test_a_fetched_model_is_not_asked_for_again_and_the_manifest_is_byte_equal(station):
    station.hub.models["owner/tiny"] = model_repository()
    station.run()
    before = (station.root / "job" / "manifest.json").read_bytes()
    station.hub.log.clear()
    assert station.run()["code"] == 0
    assert station.hub.log == []
    assert (station.root / "job" / "manifest.json").read_bytes() == before


def test_two_recipes_at_once_download_a_model_once(station):
    station.hub.models["owner/tiny"] = model_repository(300_000)
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda job: station.run(job=job), ("one", "two")))
    assert [outcome["code"] for outcome in outcomes] == [0, 0]
    assert len(station.hub.asked("/model.safetensors")) == 1


def test_a_dropped_connection_is_continued_where_it_broke(station):
    repository = station.hub.models["owner/tiny"] = model_repository(300_000, drop_after=100_000)
    assert station.run()["code"] == 0
    ranges = [request.range for request in station.hub.asked("/model.safetensors")]
    assert ranges == [None, "bytes=100000-"]
    assert (station.root / FOLDER / "model.safetensors").read_bytes() == repository.files["model.safetensors"]


def test_a_failed_run_keeps_what_came_and_the_next_continues_it(station):
    repository = station.hub.models["owner/tiny"] = model_repository(300_000)
    error(station.run(largest_file=131_072), 1)
    assert not (station.root / FOLDER).exists()
    kept = (station.root / f"{FOLDER}.partial/model.safetensors.part").stat().st_size
    assert kept == 131_072
    station.hub.log.clear()
    assert station.run()["code"] == 0
    assert [request.range for request in station.hub.asked("/model.safetensors")] == [f"bytes={kept}-"]
    assert (station.root / FOLDER / "model.safetensors").read_bytes() == repository.files["model.safetensors"]
    assert not station.hub.asked("/config.json")


def test_a_full_disk_is_said_with_the_variable_that_moves_the_volume(station):
    station.hub.models["owner/tiny"] = model_repository(300_000)
    text = error(station.run(largest_file=131_072), 1)
    assert f"The disk of {(station.root / FOLDER).parent} is full" in text and "TUNE_MODELS" in text and "it continues" in text


def test_too_little_space_is_said_before_anything_is_downloaded(station):
    station.hub.models["owner/tiny"] = model_repository(claimed={"model.safetensors": 10**18})
    text = error(station.run(), 1)
    assert "needs 1000000000.0 GB more" in text and "free" in text and "TUNE_MODELS" in text
    assert not station.hub.asked("resolve")


def test_damaged_bytes_are_not_kept(station):
    station.hub.models["owner/tiny"] = model_repository(damaged=True)
    assert "arrived damaged and was removed" in error(station.run(), 1)
    assert not (station.root / FOLDER).exists()


def test_a_gated_repository_names_the_page_and_the_token(station):
    station.hub.models["owner/tiny"] = model_repository(gated=True)
    text = error(station.run(), 2)
    assert "'owner/tiny' is gated" in text and f"{station.hub.url}/owner/tiny" in text and "HF_TOKEN" in text


def test_the_token_of_the_environment_is_sent(station):
    station.hub.models["owner/tiny"] = model_repository()
    station.environment["HF_TOKEN"] = "hf_test"
    station.run()
    assert {request.authorization for request in station.hub.log} == {"Bearer hf_test"}


def test_a_missing_repository_is_named(station):
    text = error(station.run(), 2)
    assert "There is no model 'owner/tiny'" in text and "private" in text


def test_a_missing_commit_is_named(station):
    station.hub.models["owner/tiny"] = model_repository()
    text = error(station.run(MODEL | {"commit": "1" * 40}), 2)
    assert "The model 'owner/tiny' has no revision '1111111" in text


def test_a_refused_token_is_said(station):
    station.hub.models["owner/tiny"] = model_repository(status=403)
    text = error(station.run(), 2)
    assert "refuses access to the model 'owner/tiny'" in text and "HF_TOKEN" in text


def test_a_hub_that_cannot_be_reached_is_named(station):
    station.environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    text = error(station.run(), 1)
    assert "http://127.0.0.1:9 cannot be reached" in text and "HF_ENDPOINT" in text and "--offline" in text


def test_a_hub_that_is_down_is_asked_again_and_then_named(station):
    station.hub.models["owner/tiny"] = model_repository(status=503)
    text = error(station.run(), 1)
    assert "answers with HTTP status 503" in text
    assert len(station.hub.log) == 3


def test_a_login_page_in_the_place_of_the_hub_is_recognised(station):
    station.environment["HF_ENDPOINT"] = f"{station.hub.url}/portal"
    station.hub.pages[f"/portal/api/models/owner/tiny/revision/{COMMIT}"] = b"<html>please log in</html>"
    text = error(station.run(), 1)
    assert "gives no usable answer for the model 'owner/tiny'" in text and "login page" in text


def test_the_librarys_own_offline_switch_is_named(station):
    station.environment["HF_HUB_OFFLINE"] = "1"
    assert "HF_HUB_OFFLINE is set" in error(station.run(), 1)


def test_offline_nothing_is_asked_and_the_way_out_is_said(station):
    station.hub.models["owner/tiny"] = model_repository()
    text = error(station.run(offline=True), 1)
    assert "model 'owner/tiny'" in text and "not fetched yet" in text and "without --offline" in text
    assert station.hub.log == []


def test_offline_a_fetched_model_and_its_data_are_enough(station):
    station.hub.models["owner/tiny"] = model_repository()
    station.hub.datasets["owner/rows"] = Repository({"a.jsonl": b"{}\n"})
    data = ({"kind": "hub", "hub": "huggingface", "repo": "owner/rows", "commit": COMMIT, "files": ["*.jsonl"]},)
    station.run(data=data)
    station.hub.log.clear()
    assert station.run(data=data, offline=True)["code"] == 0
    assert station.hub.log == []


def test_pickled_weights_of_an_unknown_architecture_are_refused_before_they_are_downloaded(station):
    repository = station.hub.models["owner/tiny"] = model_repository()
    del repository.files["model.safetensors"]
    repository.files["config.json"] = b'{"model_type": "novel"}'
    text = error(station.run(), 2)
    assert "as pickles only (pytorch_model.bin)" in text and "a revision with safetensors" in text
    assert not station.hub.asked("/pytorch_model.bin")


def test_a_model_that_needs_code_is_refused_before_its_weights_are_downloaded(station):
    repository = station.hub.models["owner/tiny"] = model_repository()
    repository.files["config.json"] = json.dumps({"auto_map": {"AutoModel": "modeling_tiny.Tiny"}}).encode()
    assert "asks for Python code (auto_map: modeling_tiny.py)" in error(station.run(), 2)
    assert not station.hub.asked("/model.safetensors")


def test_a_volume_that_cannot_be_written_is_named_with_its_variable(station):
    station.hub.models["owner/tiny"] = model_repository()
    (station.root / "models").write_text("a file where the volume should be")
    text = error(station.run(), 1)
    assert f"Cannot write to {station.root / 'models'}" in text and "TUNE_MODELS" in text
