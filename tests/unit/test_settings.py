"""Where things are on this machine."""

import os
from pathlib import Path

import pytest

from tunestation import settings
from tunestation.errors import InputError


def test_without_variables_everything_lies_below_the_checkout():
    found = settings.load({})
    home = settings.PROJECT / "volumes"
    assert (found.models, found.datasets, found.runs, found.cache) == (home / "models", home / "datasets", home / "runs", home / "cache")
    assert (found.recipes, found.offline, found.processes) == (settings.PROJECT / "recipes", False, None)


def test_tune_home_moves_all_volumes_and_each_can_be_moved_alone():
    found = settings.load({"TUNE_HOME": "/h", "TUNE_RUNS": "~/r", "TUNE_RECIPES": "/q", "TUNE_MODELS": ""})
    assert (found.models, found.runs, found.recipes) == (Path("/h/models"), Path.home() / "r", Path("/q"))


def test_relative_folders_are_meant_from_the_current_one():
    assert settings.load({"TUNE_HOME": "h"}).cache == Path.cwd() / "h" / "cache"


@pytest.mark.parametrize(("text", "offline"), [("", False), ("0", False), ("1", True), ("yes", True)])
def test_offline_is_a_switch(text, offline):
    assert settings.load({"TUNE_OFFLINE": text}).offline is offline


def test_a_count_of_processes_that_is_none_is_refused():
    assert settings.load({"TUNE_PROCESSES": "4"}).processes == 4
    for text in ("0", "-1", "two", "1.5", "²"):
        with pytest.raises(InputError, match=f"environment: TUNE_PROCESSES is '{text}', which is not a count. Set it to 1 or more"):
            settings.load({"TUNE_PROCESSES": text})


def test_several_nodes_need_a_number_each_and_a_place_to_meet():
    found = settings.load({"TUNE_NODES": "2", "TUNE_NODE_RANK": "1", "TUNE_RENDEZVOUS": "[::1]:29500"})
    assert (found.nodes, found.node, found.host, found.port) == (2, 1, "::1", 29500)
    assert settings.load({"TUNE_NODES": "1", "TUNE_NODE_RANK": "0"}).nodes == 1


def test_every_bad_variable_of_nodes_is_told():
    with pytest.raises(InputError) as told:
        settings.load({"TUNE_NODES": "2", "TUNE_NODE_RANK": "2", "TUNE_RENDEZVOUS": "10.0.0.1"})
    assert str(told.value).splitlines() == [
        "environment: TUNE_NODE_RANK is '2'. With TUNE_NODES=2 it is a number from 0 to 1, another on each node.",
        "environment: TUNE_RENDEZVOUS is '10.0.0.1'. Set it to address:port of node 0, the same on all nodes.",
        "2 problems; nothing was run.",
    ]


def test_node_0_writes_where_one_machine_would_and_another_beside_it():
    variables = {"TUNE_NODES": "2", "TUNE_RENDEZVOUS": "h:1"}
    first, second = (settings.load(variables | {"TUNE_NODE_RANK": rank}) for rank in "01")
    assert (first.own(Path("/runs/x")), second.own(Path("/runs/x"))) == (Path("/runs/x"), Path("/runs/x/node-1"))


def test_a_child_process_gets_this_environment_with_this_code_first(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("KEPT", "1")
    found = settings.child_environment({"EXTRA": "2"})
    assert (found["KEPT"], found["EXTRA"]) == ("1", "2")
    assert found["PYTHONPATH"] == f"{settings.PROJECT / 'src'}{os.pathsep}/elsewhere"


def test_no_other_module_reads_the_environment():
    sources = {path.name: path.read_text(encoding="utf-8") for path in (settings.PROJECT / "src").rglob("*.py")}
    assert {name for name, text in sources.items() if "os.environ[" in text or "os.environ." in text or "os.getenv" in text} == {
        "settings.py"
    }


def test_the_page_listens_on_this_machine_alone_unless_told_otherwise():
    assert settings.load({}).listen == "127.0.0.1"
    assert settings.load({"TUNE_LISTEN": "0.0.0.0"}).listen == "0.0.0.0"
