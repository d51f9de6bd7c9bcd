"""Running stages in child processes: records, publishing, errors that cross the process boundary, and what is left behind."""

import json
import subprocess
from pathlib import Path

import pytest
from line import beginning_anew, stage

from tunestation.errors import InputError, Interrupted, TunestationError
from tunestation.pipeline.digest import Digests, file_digest
from tunestation.pipeline.run import alone, busy


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def failure(line, function: str) -> tuple[TunestationError, list[str]]:
    """The error of a stage, and what its run folder holds besides logs."""
    with pytest.raises(TunestationError) as caught:
        line.run(stage("one", function))
    return caught.value, [name for name in names(line.folder / "runs") if name != "logs"]


def test_a_result_is_published_with_its_record_and_digests(line):
    one, two = line.run(stage("one", facts={"rows": 3}, metrics={"loss": 0.5}), line.stages[1])
    assert names(one.folder) == ["SHA256SUMS", "a.txt", "stage.json"]
    assert (one.outcome, one.folder.name) == ("new", f"one-{one.step.key[:12]}")
    record = json.loads((one.folder / "stage.json").read_text())
    wanted = {"stage": "one", "key": one.step.key, "facts": {"rows": 3}, "metrics": {"loss": 0.5}, "needs": {}, "tools": {}, "volumes": {}}
    assert wanted.items() <= record.items()
    assert record["outputs"] == file_digest(one.folder / "SHA256SUMS")
    assert record["machine"]["kind"].startswith("1 x ")
    later = json.loads((two.folder / "stage.json").read_text())
    assert later["needs"] == {"one": record["outputs"]}
    assert later["observed"]["needed"] == {"one": ["SHA256SUMS", "a.txt", "stage.json"]}


def test_sha256sum_audits_a_result_without_us(line):
    done = line.run(stage("one", files={"a.txt": "a\n", "你好 b.txt": "b\n"}))
    audit = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=done[0].folder, capture_output=True, text=True, check=False)
    assert (audit.returncode, audit.stdout.count(": OK")) == (0, 2)
    (done[0].folder / "a.txt").write_text("edited\n")
    assert (
        subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=done[0].folder, capture_output=True, check=False).returncode == 1
    )


def test_the_terminal_sees_what_a_stage_prints_and_chance_is_fixed(line, capfd):
    line.run(stage("one"))
    assert capfd.readouterr().out == "\n[one] run: never run with these settings\nwrote with hash seed 0\n"


def test_a_second_run_skips_everything(line):
    line.run()
    again = line.run()
    assert [(done.outcome, done.seconds) for done in again] == [("skipped", 0.0)] * 2


def test_a_forced_run_says_whether_its_bytes_are_the_same(line):
    line.run(stage("one"))
    assert line.run(stage("one"), forced=("one",))[0].outcome == "byte-equal"
    line.run(stage("two", "count"))
    assert line.run(stage("two", "count"), forced=("two",))[0].outcome == "other bytes"


def test_a_stage_behind_one_that_ran_again_with_the_same_bytes_is_skipped(line):
    one, _ = line.run()
    (one.folder / "a.txt").write_text("edited\n")
    assert [done.outcome for done in line.run()] == ["byte-equal", "skipped"]


def test_publishing_replaces_an_older_result_and_leaves_nothing_else(line):
    line.run(stage("one", "count"))
    done = line.run(stage("one", "count"), forced=("one",))[0]
    assert (done.folder / "a.txt").read_text() == "2"
    assert [name for name in names(line.folder / "runs") if name != "logs"] == [done.folder.name]


def test_an_interrupted_run_goes_on_in_its_folder_and_a_forced_one_begins_with_an_empty_one(line):
    partial = line.shelf.partial("one", line.plan()[0].key)
    partial.mkdir(parents=True)
    (partial / "half.txt").write_text("half")
    resumed = line.run(line.stages[0])[0]
    assert json.loads((resumed.folder / "stage.json").read_text())["observed"]["there"] == ["half.txt"]
    partial.mkdir()
    (partial / "half.txt").write_text("half")
    forced = line.run(line.stages[0], forced=("one",))[0]
    assert json.loads((forced.folder / "stage.json").read_text())["observed"]["there"] == []


def test_wrong_input_found_by_a_stage_comes_back_with_every_problem(line):
    error, left = failure(line, "refuse")
    assert (type(error), error.exit_code) == (InputError, 2)
    assert str(error) == "x.jsonl:3: is wrong. Mend it.\nx.jsonl:9: ist falsch: 你好.\n2 problems; one did not finish."
    assert [name.endswith(".partial") for name in left] == [True]


def test_wrong_input_found_later_says_which_stages_were_done_before(line):
    with pytest.raises(InputError, match=r"2 problems; two did not finish, what one made is kept\.$"):
        line.run(line.stages[0], stage("two", "refuse", needs=("one",)))
    with pytest.raises(InputError, match=r"2 problems; two did not finish\.$"):
        line.run(line.stages[0], stage("two", "refuse", needs=("one",)))


def test_a_mistake_of_ours_becomes_one_line_that_names_the_log_with_the_traceback(line):
    error, left = failure(line, "crash")
    log = next((line.folder / "runs" / "logs").glob("one-*/log.txt"))
    assert (type(error), error.exit_code) == (TunestationError, 1)
    assert str(error) == f"ValueError: no such thing The whole story is in {log}"
    assert "Traceback" in log.read_text()
    assert [name.endswith(".partial") for name in left] == [True]


def test_a_full_disk_is_told_with_what_to_do(line):
    error, _ = failure(line, "fill")
    assert (error.exit_code, error.problems[0].remedy) == (1, "Free some space, or point TUNE_RUNS to a larger disk.")


def test_a_killed_stage_is_told_with_the_signal_and_publishes_nothing(line):
    error, left = failure(line, "die")
    assert error.exit_code == 1
    assert str(error).startswith("one ended without a result (SIGKILL, often a sign that the machine ran out of memory).")
    assert [name.endswith(".partial") for name in left] == [True]


def test_a_stage_that_ends_without_a_result_is_an_error(line):
    error, left = failure(line, "vanish")
    assert str(error).startswith("one ended without a result (exit code 0).")
    assert [name.endswith(".partial") for name in left] == [True]


def test_ctrl_c_ends_a_stage_and_says_how_to_go_on(line):
    error, left = failure(line, "stop")
    assert (type(error), error.exit_code) == (Interrupted, 1)
    assert str(error) == "one was stopped. The same command goes on from what is complete."
    assert [name.endswith(".partial") for name in left] == [True]


def test_forced_it_would_begin_anew_so_going_on_wants_no_force(line):
    with pytest.raises(Interrupted, match=r"one was stopped. The same command without --force goes on from what is complete\."):
        line.run(stage("one", "stop"), forced=("one",))


def test_a_run_that_goes_on_can_be_seen_from_outside_and_nothing_is_written_for_it(tmp_path):
    assert not busy(tmp_path) and names(tmp_path) == []
    with alone(tmp_path):
        assert busy(tmp_path)
    assert not busy(tmp_path)


def test_a_failed_run_can_be_repeated_after_the_cause_is_mended(line):
    failure(line, "die")
    assert line.run(stage("one"))[0].outcome == "new"


def test_what_killed_runs_left_of_a_stage_that_begins_anew_goes_with_the_next_run_and_is_named(line, capfd):
    fresh = beginning_anew(stage("fresh"))
    left = [line.shelf.partial(name, key) for name, key in (("fresh", "0" * 12), ("fresh", line.plan(fresh)[0].key), ("one", "0" * 12))]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "half.txt").write_text("half")
    line.run(fresh, stage("one"))
    assert [folder.exists() for folder in left] == [False, False, True]  # `one` goes on when its settings come again
    said = capfd.readouterr().out.splitlines()
    assert said[0] == f"removed what interrupted runs left: {', '.join(sorted(folder.name for folder in left[:2]))}"
    line.run(stage("one"))
    assert "removed" not in capfd.readouterr().out


def test_two_runs_of_a_recipe_at_once_are_refused(tmp_path):
    run = tmp_path / "run"
    told = r"another run of this recipe is going on in .*run\. Wait for it, or stop it first\."
    with alone(run), pytest.raises(TunestationError, match=told), alone(run):
        pass
    with alone(run):
        assert run.is_dir()


def test_a_run_folder_that_cannot_be_made_is_told_with_the_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    told = r"nothing can be written to .* \(Not a directory\)\. Make the folder writable"
    with pytest.raises(TunestationError, match=told) as caught, alone(tmp_path / "file" / "run"):
        pass
    assert caught.value.exit_code == 1


def test_a_damaged_cache_of_digests_is_told_as_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "digests.sqlite").write_text("this is no database, but a text of some length")
    with pytest.raises(OSError, match=r"digests.sqlite: file is not a database"):
        Digests(tmp_path)


def test_the_cache_of_digests_notices_an_edited_file_and_reads_an_unchanged_one_once(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_text("one")
    digests = Digests(tmp_path / "cache")
    before = digests.of(path)
    monkeypatch.setattr("tunestation.pipeline.digest.file_digest", lambda path: "read again")
    assert digests.of(path) == Digests(tmp_path / "cache").of(path) == before
    path.write_text("two")
    assert digests.of(path) == "read again"
