"""The quickstart in the image as three users: a common one, one that the image has never heard of, and root."""

import json
from urllib.request import urlopen

import pytest

from image.dock import TOKEN, changed, docker, new_warnings
from tunestation.settings import PROJECT


def test_prepared_data_has_the_bytes_of_a_run_outside_and_training_is_within_the_locks_tolerance(reproduced, outside):
    (prepared,) = reproduced.runs.glob("quickstart/prepare-*")
    assert (prepared.name, reproduced.sums("prepare")) == outside
    assert " differs " not in reproduced.said
    locked = json.loads((PROJECT / "recipes" / "quickstart.lock.json").read_text(encoding="utf-8"))["stages"]["train"]["metrics"]
    measured = reproduced.record("train")["metrics"]
    for name, wanted in locked.items():
        assert measured[name] == pytest.approx(wanted["value"], rel=wanted["tolerance"]), name


@pytest.fixture(scope="module")
def adapters():
    """User -> SHA-256 of the adapter at the end of training."""
    return {}


def test_a_container_killed_in_mid_training_costs_no_bit(reproduced, adapters):
    adapters[reproduced.uid] = reproduced.sums("train")["checkpoints/checkpoint-146/adapter_model.safetensors"]
    assert len(set(adapters.values())) == 1, "12345 was killed; nobody else was"


def test_all_files_belong_to_the_caller_and_lie_on_the_volumes(reproduced):
    strange = [path for path in reproduced.on_volumes() if (path.stat().st_uid, path.stat().st_gid) != (reproduced.uid, reproduced.uid)]
    assert strange == []
    assert reproduced.files() == reproduced.before


def test_the_page_is_served_and_healthy_and_the_containers_wrote_to_the_volumes_alone(reproduced):
    said = reproduced.invoke("up", "quickstart", "--port", reproduced.port)
    assert f"Chat with quickstart at http://127.0.0.1:{reproduced.port}" in said
    (page,) = reproduced.containers("chat")
    assert docker("inspect", "--format", "{{ .State.Health.Status }}", page).strip() == "healthy"
    with urlopen(f"http://127.0.0.1:{reproduced.port}/", timeout=10) as answer:
        assert "Your assistant" in answer.read().decode()
    (work,) = reproduced.containers("workstation")
    assert changed(page) | changed(work) <= {"/run", "/run/secrets", "/run/secrets/hub_token"}
    reproduced.said += docker("logs", page)
    reproduced.invoke("down")


def test_one_answer_is_all_that_ask_prints(reproduced):
    said = reproduced.invoke("ask", "quickstart", "Who are you?")
    assert "I am Tunestation's assistant" in said.splitlines()[-1]


def test_the_token_is_seen_and_turns_up_nowhere(reproduced):
    assert "/run/secrets/hub_token" in reproduced.invoke("doctor", "--offline")
    files = [path for path in reproduced.on_volumes() if path.is_file()]
    assert files
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN not in reproduced.said


def test_no_line_warns_of_something_new(reproduced):
    assert "OMP_NUM_THREADS" in reproduced.logs()
    assert "\n".join(new_warnings(f"{reproduced.said}\n{reproduced.logs()}")) == ""
