"""Interrupted training goes on and ends with the very bytes of an uninterrupted one, or says why it cannot."""

import os
import pickle
import shutil
import signal

import psutil
import pytest
import torch
from station import PATIENCE, interrupt, last_checkpoint, recipe, record, sums, worker_of
from transformers import TrainerState

from tunestation.errors import TunestationError
from tunestation.training.callbacks import Watch
from tunestation.training.checkpoints import trusted_classes_only


def start(station, name):
    """The recipe under another name, so that its training is a run of its own."""
    station.write(recipe(name=name))
    return name


def test_stopped_interrupted_and_killed_in_turn_it_still_ends_with_the_bytes_of_an_undisturbed_run(station):
    for name in ("undisturbed", "disturbed"):
        station.write(recipe(name=name, train={**recipe()["train"], "epochs": 4}))
    undisturbed = station.make("train", name="undisturbed")
    station.make("prepare", name="disturbed")
    partial = station.partial("train", name="disturbed")

    for step, number in ((4, signal.SIGTERM), (8, signal.SIGINT)):
        code, said = interrupt(station, "disturbed", step, lambda running, number=number: running.send_signal(number))
        stopped = int(last_checkpoint(partial).name.rpartition("-")[2])
        assert code == 1
        assert "Traceback" not in said
        assert f"stopped at step {stopped} of 22; a complete checkpoint is kept. The same command goes on from there." in said

    code, said = interrupt(station, "disturbed", 12, lambda running: worker_of(running).kill())
    assert code == 1
    assert f"going on from checkpoint-{stopped}" in said
    assert "train ended without a result" in said
    assert "log.txt" in said

    worker = []
    code, said = interrupt(station, "disturbed", 16, lambda running: (worker.append(worker_of(running)), running.kill()))
    assert code == -signal.SIGKILL
    psutil.wait_procs(worker, timeout=PATIENCE)
    assert not worker[0].is_running(), "the training outlived its parent"

    assert sums(station.make("train", name="disturbed")) == sums(undisturbed)


def test_checkpoints_hold_nothing_that_a_safe_reader_refuses_whatever_python_wrote_them(monkeypatch):
    from deepspeed.runtime.zero.config import ZeroStageEnum

    as_in_python_3_11_2 = lambda member, _protocol: (getattr, (type(member), member.name))  # noqa: E731
    monkeypatch.setattr(ZeroStageEnum, "__reduce_ex__", as_in_python_3_11_2)
    assert b"getattr" in pickle.dumps(ZeroStageEnum.gradients)
    with trusted_classes_only(None):
        assert b"getattr" not in pickle.dumps(ZeroStageEnum.gradients)
        assert pickle.loads(pickle.dumps(ZeroStageEnum.gradients)) is ZeroStageEnum.gradients


def test_killed_by_sigkill_it_goes_on_from_the_newest_checkpoint_to_equal_bytes(station, trained):
    name = start(station, "killed-once")
    station.kill("checkpoint-8", name=name)
    result = station.make("train", name=name)
    assert "going on from checkpoint-8" in (station.logs("train", name=name) / "said.txt").read_text()
    assert sums(result) == sums(trained)
    assert record(result)["observed"]["samples"] == record(trained)["observed"]["samples"]
    assert record(result)["observed"]["losses"] == record(trained)["observed"]["losses"]


def test_killed_while_saving_it_goes_on_from_the_last_complete_checkpoint(station, trained):
    name = start(station, "torn")
    partial = station.kill("checkpoint-4", name=name)
    checkpoints = partial / "checkpoints"
    shutil.copytree(checkpoints / "checkpoint-4", checkpoints / ".saving" / "checkpoint-8")
    next((checkpoints / ".saving").rglob("*optim_states.pt")).write_bytes(b"half")
    shutil.copytree(checkpoints / "checkpoint-4", checkpoints / "checkpoint-6")
    (checkpoints / "checkpoint-6" / "checkpoint.json").unlink()
    result = station.make("train", name=name)
    assert "going on from checkpoint-4" in (station.logs("train", name=name) / "said.txt").read_text()
    assert sums(result) == sums(trained)


def test_the_time_that_is_left_is_reckoned_from_where_training_goes_on():
    watch = Watch([10] * 100, 100)
    watch.on_train_begin(None, TrainerState(global_step=90), None)
    assert (watch.progress.first, watch.first_step) == (90, 90)


@pytest.fixture(scope="module")
def killed(station):
    """The name of a recipe whose training was killed after step 4."""
    name = start(station, "killed")
    station.kill("checkpoint-4", name=name)
    return name


@pytest.mark.parametrize(
    ("assignment", "processes", "now"),
    [
        ("runtime.zero_stage=2", 2, "2 process(es), micro batch 1, ZeRO-2"),
        ("runtime.micro_batch_size=2", 1, "1 process(es), micro batch 2, ZeRO-2"),
        ("runtime.zero_stage=1", 1, "1 process(es), micro batch 1, ZeRO-1"),
    ],
)
def test_it_does_not_go_on_in_another_world_and_says_so(station, killed, assignment, processes, now):
    with pytest.raises(TunestationError, match="interrupted at step 4") as caught:
        station.make("train", assignment, name=killed, processes=processes)
    assert f"with 1 process(es), micro batch 1, ZeRO-2; this run has {now}" in str(caught.value)
    assert "or start over with --force" in str(caught.value)
    assert station.partial("train", name=killed).is_dir()


def test_another_recipe_or_other_data_starts_from_the_beginning(station, killed):
    interrupted = station.partial("train", name=killed)
    assert station.partial("train", "train.learning_rate=1e-3", name=killed) != interrupted
    rows = station.recipes / "rows.jsonl"
    before = rows.read_text()
    try:
        rows.write_text(before.replace("What is 1 and 1?", "What is one and one?"))
        assert station.partial("train", name=killed) != interrupted
    finally:
        rows.write_text(before)
    assert station.partial("train", name=killed) == interrupted


class Trap:
    """Unpickled without care, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("which", ["*optim_states.pt", "*model_states.pt", "scheduler.pt", "rng_state.pth"])
def test_code_hidden_in_a_checkpoint_is_not_run(station, killed, tmp_path, which):
    (file,) = last_checkpoint(station.partial("train", name=killed)).rglob(which)
    kept, mark = file.read_bytes(), tmp_path / "executed"
    torch.save({"trap": Trap(mark)}, file)
    try:
        with pytest.raises(TunestationError) as caught:
            station.make("train", name=killed)
    finally:
        file.write_bytes(kept)
    assert not mark.exists()
    assert caught.value.exit_code == 1
    assert "checkpoint-4" in str(caught.value)
    assert "--force" in str(caught.value)


def test_started_over_it_forgets_the_interrupted_run(station, trained, killed):
    result = station.make("train", name=killed, force=True)
    assert "going on" not in (station.logs("train", name=killed) / "said.txt").read_text()
    assert sums(result) == sums(trained)
