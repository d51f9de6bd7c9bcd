"""What is whole travels while work goes on; what is half written never does."""

import json
import shutil
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from recipes_for_tests import ROW, SMALL, write_rows

from tunestation.errors import InputError, TunestationError
from tunestation.pipeline.digest import RECORD, write_sums
from tunestation.pipeline.files import write_json
from tunestation.syncing import copying, main, rsync
from tunestation.syncing.main import sync
from tunestation.syncing.units import Tree

TRAIN, MERGE = "train-0123456789ab", "merge-ba9876543210"


def stage(root: Path, name: str, text: str = "weights", seconds: float = 1.0) -> Path:
    """A published stage."""
    folder = root / name
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "model.bin").write_text(text)
    write_json(folder / RECORD, {"outputs": write_sums(folder, ()), "seconds": seconds})
    return folder


def checkpoint(root: Path, step: int, name: str = TRAIN, text: str = "shard") -> Path:
    """A complete checkpoint of an unfinished stage."""
    folder = root / f"{name}.partial" / "checkpoints" / f"checkpoint-{step}"
    (folder / "global_step").mkdir(parents=True)
    (folder / "global_step" / "optim.pt").write_text(f"{text} {step}")
    (root / f"{name}.partial" / "samples.json").write_text(f'{{"{step}": []}}')
    (folder / "checkpoint.json").write_text(json.dumps({"step": step}))
    return folder


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def local(root: Path) -> Tree:
    return Tree(LocalFileSystem(), str(root))


@pytest.fixture
def away(tmp_path):
    """The run folder of a rented machine: a finished stage, an unfinished one with a checkpoint, and half-written things."""
    root = tmp_path / "away"
    stage(root, MERGE)
    checkpoint(root, 4)
    saving = root / f"{TRAIN}.partial" / "checkpoints" / ".saving" / "checkpoint-8"
    saving.mkdir(parents=True)
    (saving / "optim.pt").write_text("half")
    (root / "convert-0123456789ab.partial").mkdir()
    (root / "convert-0123456789ab.partial" / RECORD).write_text("{}")
    (root / "logs" / TRAIN).mkdir(parents=True)
    (root / "logs" / TRAIN / "log.txt").write_text("...")
    write_json(root / "pins.json", {"a/b main": "c" * 40})
    return root


WHOLE = {
    "pins.json",
    f"{MERGE}/deep/model.bin",
    f"{MERGE}/SHA256SUMS",
    f"{MERGE}/{RECORD}",
    f"{TRAIN}.partial/samples.json",
    f"{TRAIN}.partial/checkpoints/checkpoint-4/checkpoint.json",
    f"{TRAIN}.partial/checkpoints/checkpoint-4/global_step/optim.pt",
}


def test_finished_stages_and_complete_checkpoints_travel_and_nothing_half_written(away, tmp_path):
    home = tmp_path / "home"
    assert list(copying.bring(local(away), local(home))) == [f"{MERGE} arrived", f"{TRAIN}.partial/checkpoints/checkpoint-4 arrived"]
    assert files(home) == WHOLE
    assert list(copying.bring(local(away), local(home))) == []


def test_a_bucket_is_filled_and_another_machine_takes_up_from_it(away, tmp_path):
    bucket = Tree(MemoryFileSystem(), f"/bucket{tmp_path.name}/tiny")
    list(copying.bring(local(away), bucket))
    list(copying.bring(bucket, local(tmp_path / "next")))
    assert files(tmp_path / "next") == WHOLE


def test_a_newer_checkpoint_replaces_the_one_that_was_dropped_for_it(away, tmp_path):
    home = tmp_path / "home"
    list(copying.bring(local(away), local(home)))
    checkpoint(away, 8)
    shutil.rmtree(away / f"{TRAIN}.partial" / "checkpoints" / "checkpoint-4")
    list(copying.bring(local(away), local(home)))
    assert [path.name for path in (home / f"{TRAIN}.partial" / "checkpoints").iterdir()] == ["checkpoint-8"]


def test_a_machine_that_lost_everything_takes_nothing_away_at_home(away, tmp_path):
    home = tmp_path / "home"
    list(copying.bring(local(away), local(home)))
    shutil.rmtree(away)
    away.mkdir()
    assert list(copying.bring(local(away), local(home))) == []
    assert files(home) == WHOLE


def test_when_a_stage_is_finished_its_checkpoints_go(away, tmp_path):
    home = tmp_path / "home"
    list(copying.bring(local(away), local(home)))
    shutil.rmtree(away / f"{TRAIN}.partial")
    stage(away, TRAIN)
    list(copying.bring(local(away), local(home)))
    assert (home / TRAIN / RECORD).is_file() and not (home / f"{TRAIN}.partial").exists()


def test_equal_outputs_are_not_copied_again_and_others_are(away, tmp_path):
    home = tmp_path / "home"
    stage(home, MERGE, seconds=99.0)
    assert f"{MERGE} arrived" not in list(copying.bring(local(away), local(home)))
    shutil.rmtree(away / MERGE)
    stage(away, MERGE, text="other weights")
    assert list(copying.bring(local(away), local(home))) == [f"{MERGE} arrived"]
    assert (home / MERGE / "deep" / "model.bin").read_text() == "other weights"


class Changing(LocalFileSystem):
    """A file system on which something happens just before a file whose name ends with `at` is read."""

    def __init__(self, at: str, happens):
        super().__init__(skip_instance_cache=True)
        self.at, self.happens = at, happens

    def get_file(self, rpath, lpath, **options):
        if str(rpath).endswith(self.at):
            self.happens()
        super().get_file(rpath, lpath, **options)


@pytest.mark.parametrize("again", [False, True])
def test_a_checkpoint_that_goes_away_or_is_made_anew_while_it_is_copied_does_not_arrive(away, tmp_path, again):
    home, folder = tmp_path / "home", away / f"{TRAIN}.partial" / "checkpoints" / "checkpoint-4"

    def happens():
        shutil.rmtree(folder)
        if again:
            checkpoint(away, 4, text="new")
            (folder / "checkpoint.json").write_text('{"step": 4, "held_out_loss": 1}')

    lines = list(copying.bring(Tree(Changing("optim.pt", happens), str(away)), local(home)))
    assert lines[-1] == f"{TRAIN}.partial/checkpoints/checkpoint-4 went away while it was copied; next time"
    assert not (home / f"{TRAIN}.partial" / "checkpoints" / "checkpoint-4").exists()


def test_killed_at_any_file_nothing_half_copied_counts_as_whole(away, tmp_path):
    def stop():
        raise KeyboardInterrupt

    for name in ("model.bin", "SHA256SUMS", "optim.pt"):
        home = tmp_path / name
        with pytest.raises(KeyboardInterrupt):
            list(copying.bring(Tree(Changing(name, stop), str(away)), local(home)))
        for unit in local(home).units():
            assert files(home / unit.name) == files(away / unit.name)
        list(copying.bring(local(away), local(home)))
        assert files(home) == WHOLE


def test_bytes_that_do_not_match_their_digest_are_told_and_not_kept(away, tmp_path):
    (away / MERGE / "deep" / "model.bin").write_text("rotten")
    with pytest.raises(TunestationError, match=r"model\.bin: arrived with other bytes than its SHA256SUMS names, and was not kept"):
        list(copying.bring(local(away), local(tmp_path / "home")))
    assert local(tmp_path / "home").units() == []


@pytest.fixture
def over_ssh(tmp_path, monkeypatch):
    """rsync's own protocol with a stand-in for ssh that runs the far end's command here."""
    if not shutil.which("rsync"):
        pytest.skip("no rsync")
    shell = tmp_path / "ssh"
    shell.write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
    shell.chmod(0o755)
    monkeypatch.setenv("RSYNC_RSH", str(shell))
    return lambda folder: f"rented:{folder}"


def test_over_ssh_arrives_what_is_whole_and_nothing_else(away, tmp_path, over_ssh):
    home = tmp_path / "home"
    assert len(list(rsync.pull(over_ssh(away), home))) == 2
    assert files(home) == WHOLE
    assert list(rsync.pull(over_ssh(away), home)) == []
    checkpoint(away, 8)
    shutil.rmtree(away / f"{TRAIN}.partial" / "checkpoints" / "checkpoint-4")
    list(rsync.pull(over_ssh(away), home))
    assert [path.name for path in (home / f"{TRAIN}.partial" / "checkpoints").iterdir()] == ["checkpoint-8"]


def test_over_ssh_what_changes_between_the_passes_waits_for_the_next_time(away, tmp_path, over_ssh, monkeypatch):
    passes, real = [], rsync._rsync

    def change(source, staging, *filters):
        passes.append(filters)
        if len(passes) == 3:
            checkpoint_file = away / f"{TRAIN}.partial" / "checkpoints" / "checkpoint-4" / "global_step" / "optim.pt"
            checkpoint_file.write_text("written anew, and longer")
        return real(source, staging, *filters)

    monkeypatch.setattr(rsync, "_rsync", change)
    assert list(rsync.pull(over_ssh(away), tmp_path / "home")) == [f"{MERGE} arrived"]
    assert len(list(rsync.pull(over_ssh(away), tmp_path / "home"))) == 1


def test_an_address_that_does_not_answer_is_told(tmp_path, over_ssh):
    with pytest.raises(TunestationError, match=r"rented:.*: rsync failed: .*No such file"):
        list(rsync.pull(over_ssh(tmp_path / "nowhere"), tmp_path / "home"))


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    write_rows(tmp_path / "recipes" / "rows.jsonl", [ROW])
    (tmp_path / "recipes" / "small.yaml").write_text(SMALL, encoding="utf-8")
    monkeypatch.setenv("TUNE_RECIPES", str(tmp_path / "recipes"))
    monkeypatch.setenv("TUNE_HOME", str(tmp_path / "home"))
    return tmp_path


def test_the_task_brings_a_recipes_runs_here_and_takes_them_elsewhere(recipe, capsys):
    stage(recipe / "far" / "small", MERGE)
    sync("small", str(recipe / "far"), "", 0)
    assert f"{MERGE} arrived" in capsys.readouterr().out
    sync("small", "", f"file://{recipe / 'copy'}", 0)
    assert files(recipe / "copy" / "small") == files(recipe / "home" / "runs" / "small") - {".lock"}
    sync("small", "", f"file://{recipe / 'copy'}", 0)
    assert capsys.readouterr().out.endswith("small: nothing new\n")


@pytest.mark.parametrize(
    ("source", "to", "says"),
    [
        ("", "", "give one of --source and --to"),
        ("a", "b", "give one of --source and --to"),
        ("", "host:/runs", "over SSH results can only be fetched"),
        ("nonsense://x", "", "this place cannot be used: Protocol not known: nonsense"),
        ("/no/such/folder", "", "/no/such/folder: there is no such folder. Give the runs folder"),
    ],
)
def test_places_that_cannot_be_used_are_told(recipe, source, to, says):
    with pytest.raises(InputError, match=says):
        sync("small", source, to, 0)


def test_again_and_again_it_outlasts_a_place_that_is_away_for_a_while(recipe, monkeypatch, capsys):
    stage(recipe / "far" / "small", MERGE)
    tries = iter([ConnectionResetError("peer went away"), ValueError("bad gateway"), None])
    real, naps = main.bring, []

    def bring(far, mine):
        if trouble := next(tries):
            raise trouble
        yield from real(far, mine)

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(main, "bring", bring)
    monkeypatch.setattr(main.time, "sleep", nap)
    with pytest.raises(KeyboardInterrupt):
        sync("small", str(recipe / "far"), "", 60)
    first, second, _, third = capsys.readouterr().out.splitlines()
    assert "cannot be read or written (ConnectionResetError: peer went away). Check the address" in first
    assert "(ValueError: bad gateway)" in second and second.endswith("Trying again in 60 s.")
    assert third.endswith("small: 1 changes")


def test_once_it_says_what_went_wrong_there(recipe, monkeypatch):
    def bring(far, mine):
        raise PermissionError(13, "Permission denied")

    stage(recipe / "far" / "small", MERGE)
    monkeypatch.setattr(main, "bring", bring)
    with pytest.raises(TunestationError, match=r"far: cannot be read or written \(PermissionError: \[Errno 13\] Permission denied\)"):
        sync("small", str(recipe / "far"), "", 0)


def test_results_do_not_arrive_under_a_running_recipe(recipe):
    from tunestation.pipeline.run import alone

    with alone(recipe / "home" / "runs" / "small"), pytest.raises(TunestationError, match="another run of this recipe is going on"):
        sync("small", str(recipe / "far"), "", 0)
