"""Nodes meet before they train together: they do what node 0 says, or are told why they cannot."""

import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from line import Line, here, stage
from station import PATIENCE, free_port

from tunestation.errors import InputError, TunestationError
from tunestation.pipeline.meeting import agree
from tunestation.pipeline.plan import decide
from tunestation.pipeline.run import run
from tunestation.pipeline.stage import keys
from tunestation.pipeline.workers import Workers


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """Makes nodes that share nothing: each with its own volumes, and the stages `one` and `two`, which all do together."""
    port = free_port()

    def make(count: int) -> list[tuple[Line, Workers]]:
        lines = []
        for node in range(count):
            (tmp_path / str(node)).mkdir()
            lines.append((Line(tmp_path / str(node), monkeypatch), Workers(1, count, node, "127.0.0.1", port)))
        return lines

    return make


def together(line: Line):
    return replace(line.stages[1], distributed=True)


def meet(line: Line, workers: Workers, stage=None, patience: float = PATIENCE):
    """What a node would do next, after meeting the others."""
    stages = [line.stages[0], stage or together(line)]
    if line.shelf.outputs("one", keys(stages)["one"]) is None:
        line.run(line.stages[0])
    return agree(decide(stages[1], keys(stages), line.shelf), keys(stages), line.shelf, workers, patience)


def all_meet(*visits) -> list:
    """The step or error of each node, all at the same time."""
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(meet, *visit) for visit in visits]
        return [one.exception() or one.result() for one in running]


def test_every_node_does_what_node_0_does(nodes, monkeypatch):
    monkeypatch.setattr("tunestation.pipeline.run.run_child", here)
    first, second, third = nodes(3)
    found = keys([first[0].stages[0], together(first[0])])["two"]
    first[0].shelf.partial("two", found).mkdir(parents=True)
    steps = all_meet(first, second, third)
    assert [step.action for step in steps] == ["resume", "resume", "resume"]
    assert [step.reason for step in steps[1:]] == ["as node 0 does", "as node 0 does"]


def test_nodes_that_would_not_run_the_same_are_told_what_differs(nodes, monkeypatch):
    monkeypatch.setattr("tunestation.pipeline.run.run_child", here)
    first, second = nodes(2)
    other = replace(stage("two", needs=("one",), files={"b.txt": "other\n"}), distributed=True)
    errors = all_meet(first, (*second, other))
    for error in errors:
        assert isinstance(error, InputError)
        assert 'nodes: node 1 would run another two (params.files.b.txt: "b\\n" -> "other\\n").' in str(error)
        assert "Give all nodes the same recipe, code and data." in str(error)


def test_nodes_whose_inputs_have_other_bytes_are_told(nodes, monkeypatch):
    monkeypatch.setattr("tunestation.pipeline.run.run_child", here)
    first, second = nodes(2)
    (done,) = second[0].run(second[0].stages[0])
    (done.folder / "SHA256SUMS").write_text("0" * 64 + "  a.txt\n")
    errors = all_meet(first, second)
    assert "node 1 would run another two (inputs.one: " in str(errors[0])


def test_a_node_that_does_not_come_is_named(nodes, monkeypatch):
    monkeypatch.setattr("tunestation.pipeline.run.run_child", here)
    first, second, _ = nodes(3)
    errors = all_meet((*first, None, 3.0), (*second, None, 3.0))
    assert re.search(r"node (1, )?2 did not come to 127\.0\.0\.1:", str(errors[0]))  # node 1 may come late
    assert "each with its own TUNE_NODE_RANK" in str(errors[0])
    assert "node 0 did not answer at 127.0.0.1:" in str(errors[1])


def test_a_stranger_on_the_port_changes_nothing(nodes, monkeypatch):
    monkeypatch.setattr("tunestation.pipeline.run.run_child", here)
    first, second = nodes(2)
    answers = []

    def visit() -> None:
        for said in (b"GET / HTTP/1.1\r\n\r\n", b'{"node": 7}\n', b"[]\n", b""):
            while True:
                try:
                    with socket.create_connection(("127.0.0.1", first[1].port), timeout=PATIENCE) as line:
                        line.sendall(said)
                        line.shutdown(socket.SHUT_WR)
                        answers.append(line.recv(100))
                    break
                except ConnectionRefusedError:
                    continue

    with ThreadPoolExecutor() as pool:
        leader = pool.submit(meet, *first)
        stranger = threading.Thread(target=visit)
        stranger.start()
        stranger.join(PATIENCE)
        steps = [pool.submit(meet, *second).result(), leader.result()]
    assert answers == [b"", b"", b"", b""]
    assert [step.action for step in steps] == ["run", "run"]


def test_a_node_that_was_restarted_while_it_waited_takes_its_own_place(nodes, monkeypatch):
    monkeypatch.setattr("tunestation.pipeline.run.run_child", here)
    first, second, third = nodes(3)
    for line, _ in (first, second, third):
        line.run(line.stages[0])  # the second before it is there twice, and all so that they only have to meet
    with ThreadPoolExecutor() as pool:
        leader = pool.submit(meet, *first)
        twice = [pool.submit(meet, *second, None, 4.0) for _ in range(2)]
        last = pool.submit(meet, *third)
        assert {one.result().action for one in (leader, last)} == {"run"}
        assert [one.exception() for one in twice].count(None) >= 1


def test_an_address_that_is_not_node_0_s_own_is_told(nodes, monkeypatch):
    monkeypatch.setattr("tunestation.pipeline.run.run_child", here)
    (line, workers), _ = nodes(2)
    with pytest.raises(TunestationError, match=r"TUNE_RENDEZVOUS: node 0 cannot listen on 192\.0\.2\.1:\d+ \("):
        meet(line, replace(workers, host="192.0.2.1"))


def test_node_0_has_the_result_and_another_node_stops_after_what_all_do_together(nodes, monkeypatch):
    monkeypatch.setattr("tunestation.pipeline.run.run_child", here)
    pair = nodes(2)

    def everything(line: Line, workers: Workers):
        stages = [line.stages[0], together(line), stage("three", needs=("two",))]
        return list(run(stages, line.shelf, {}, workers))

    with ThreadPoolExecutor() as pool:
        leader, other = [one.result() for one in [pool.submit(everything, *node) for node in pair]]
    assert [(done.step.stage.name, done.outcome) for done in leader] == [("one", "new"), ("two", "new"), ("three", "new")]
    assert [(done.step.stage.name, done.outcome) for done in other] == [("one", "new"), ("two", "lent")]
    assert leader[1].folder.is_dir() and not other[1].folder.exists()


def test_when_node_0_has_the_result_already_the_others_have_nothing_to_do(nodes, monkeypatch):
    monkeypatch.setattr("tunestation.pipeline.run.run_child", here)
    first, second = nodes(2)
    list(run([first[0].stages[0], together(first[0])], first[0].shelf, {}, Workers()))
    assert [step.action for step in all_meet(first, second)] == ["skip", "skip"]


def test_the_kind_of_a_result_tells_the_nodes():
    assert (str(Workers(2)), str(Workers(4, nodes=2))) == ("2", "2 x 4")
    assert Workers(4, nodes=2).world == 8
