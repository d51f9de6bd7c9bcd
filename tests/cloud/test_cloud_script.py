"""The script that task files of rented machines call: which tasks it runs, with what, and how it ends."""

import os
import subprocess

import pytest

from tunestation.settings import PROJECT

SAYS = """#!/bin/sh
echo "$* nodes=${TUNE_NODES:-} rank=${TUNE_NODE_RANK:-} at=${TUNE_RENDEZVOUS:-}" >> "$CALLS"
case "$*" in
    *--every*) exec sleep 60 ;;
    reproduce*)
        # the keeper was started beside it, and may be slower
        while [ -n "${TUNE_KEEP:-}" ] && ! grep -q -e --every "$CALLS"; do sleep 0.05; done
        exit ${CODE:-0} ;;
esac
"""


@pytest.fixture
def script(tmp_path):
    """Runs it with a stand-in for invoke; returns its exit code and the calls."""
    (tmp_path / "invoke").write_text(SAYS)
    (tmp_path / "invoke").chmod(0o755)

    def run(**variables: str) -> tuple[int, list[str]]:
        environment = {"PATH": f"{tmp_path}:{os.defpath}", "CALLS": str(tmp_path / "calls"), **variables}
        command = [PROJECT / "docker/cloud/run.sh"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=300, check=False)
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        return done.returncode, calls

    return run


def test_it_takes_up_what_is_kept_runs_and_keeps_the_results(script):
    code, calls = script(RECIPE="x", TUNE_KEEP="/keep")
    assert code == 0
    assert sorted(call.split(" nodes=")[0] for call in calls) == sorted([
        "doctor", "sync x --source /keep", "sync x --to /keep --every 60", "reproduce x", "sync x --to /keep",
    ])  # fmt: skip
    assert calls[0].startswith("doctor") and calls[1].startswith("sync x --source") and calls[-1].startswith("sync x --to /keep nodes")


def test_it_ends_with_the_exit_code_of_the_run_after_keeping_what_there_is(script):
    code, calls = script(RECIPE="x", TUNE_KEEP="/keep", CODE="3")
    assert code == 3 and calls[-1].startswith("sync x --to /keep nodes")


def test_on_a_volume_that_lasts_nothing_is_copied(script):
    assert [call.split()[0] for call in script(RECIPE="x")[1]] == ["doctor", "reproduce"]


@pytest.mark.parametrize(
    "variables",
    [
        {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5"},
        {"DSTACK_NODES_NUM": "2", "DSTACK_NODE_RANK": "1", "DSTACK_MASTER_NODE_IP": "10.0.0.4"},
    ],
)
def test_several_nodes_are_told_their_number_and_where_to_meet(script, variables):
    code, calls = script(RECIPE="x", **variables)
    assert code == 0 and calls[-1] == "reproduce x nodes=2 rank=1 at=10.0.0.4:29500"


def test_without_a_recipe_nothing_is_run(script):
    code, calls = script()
    assert code != 0 and calls == []
