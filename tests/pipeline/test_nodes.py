"""Two nodes on one machine, each with its own `invoke`: they learn what one learns, and go on together after one was lost."""

import os
import shutil
import signal

import pytest
from station import PATIENCE, free_port, history, record, wait_until, weights, worker_of
from test_distributed import pair

from tunestation.pipeline.stage import keys


@pytest.fixture(scope="module")
def one_node(station):
    """What two processes on one node learn."""
    return station.make("train", name=pair(station, "nodes"), processes=2)


class Pair:
    """Two nodes, with a home each or one for both; what `fetch` and `prepare` make is there already."""

    def __init__(self, station, homes):
        self.station = station
        self.homes = homes
        work = station.open(name="nodes")
        self.key = keys(work.stages)["train"][:12]
        for home, share in zip(homes, ("", "node-1"), strict=True):
            for folder in work.shelf.folder.glob("[fp]r*-*"), work.shelf.folder.glob("fetch-*"):
                for made in folder:
                    shutil.copytree(made, home / "runs" / "nodes" / share / made.name, dirs_exist_ok=True)

    def start(self):
        """`invoke train` on both."""
        meeting = {"TUNE_NODES": "2", "TUNE_RENDEZVOUS": f"127.0.0.1:{free_port()}"}
        places = [{"TUNE_HOME": str(home), "TUNE_MODELS": str(self.station.model.parent)} for home in self.homes]
        return [self.station.start("train", "nodes", **meeting, **place, TUNE_NODE_RANK=str(node)) for node, place in enumerate(places)]

    def finish(self, running):
        """What both said; they must have ended well."""
        said = [one.communicate(timeout=PATIENCE)[0] for one in running]
        for node, one in enumerate(running):
            assert one.returncode == 0, said[node]
            assert "Traceback" not in said[node]
        return said

    def trained(self, partial=""):
        """Where each node's training is."""
        shares = zip(self.homes, ("", "node-1"), strict=True)
        return [home / "runs" / "nodes" / share / f"train-{self.key}{partial}" for home, share in shares]


@pytest.fixture(scope="module")
def apart(station, one_node, tmp_path_factory):
    """Two nodes with volumes of their own; node 1 was lost at step 4, and both were started again."""
    nodes = Pair(station, [tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")])
    running = nodes.start()
    saved = [folder / "checkpoints" / "checkpoint-4" / "checkpoint.json" for folder in nodes.trained(".partial")]
    wait_until(saved[1].exists, lambda: running[1].poll() is None)
    os.kill(worker_of(running[1]).pid, signal.SIGKILL)
    nodes.lost = [one.communicate(timeout=PATIENCE)[0] for one in running]
    assert [one.returncode for one in running] == [1, 1]
    nodes.said = nodes.finish(nodes.start())
    return nodes


def test_two_nodes_learn_the_bytes_that_two_processes_of_one_node_learn(apart, one_node):
    result, _ = apart.trained()
    assert weights(result) == weights(one_node)
    assert history(result, "loss") == history(one_node, "loss")
    assert history(result, "eval_loss") == history(one_node, "eval_loss")
    assert record(result)["facts"] == record(one_node)["facts"]
    assert record(result)["machine"]["kind"].startswith("2 x 1 x ")


def test_the_node_that_is_left_says_that_another_was_lost(apart):
    assert "another training process was lost. See what it said, on its own node if there are several" in apart.lost[0]
    assert "SIGKILL" in apart.lost[1] or "ended without a result" in apart.lost[1]


def test_after_one_node_was_lost_both_go_on_from_the_newest_checkpoint_that_both_have(apart):
    for said in apart.said:
        assert "going on from checkpoint-" in said


def test_node_0_alone_keeps_the_result(apart):
    first, second = apart.trained()
    assert (first / "stage.json").is_file()
    assert not second.exists() and not apart.trained(".partial")[1].exists()
    assert "done together; node 0 has the result" in apart.said[1]


def test_nodes_that_share_their_volumes_write_in_folders_of_their_own(station, apart, one_node, tmp_path):
    nodes = Pair(station, [tmp_path, tmp_path])
    nodes.finish(nodes.start())
    result, other = nodes.trained()
    assert weights(result) == weights(one_node)
    assert not other.exists()
    assert {path.name for path in (tmp_path / "cache").iterdir()} >= {"node-1", "digests.sqlite"}
