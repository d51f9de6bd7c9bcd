"""What would run and why: nothing runs twice without a reason that is said."""

from dataclasses import replace

import pytest
from line import here, stage

DONE = ("skip", "done before with the same inputs")


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr("tunestation.pipeline.run.run_child", here)


def test_a_stage_that_never_ran_says_so_and_the_ones_behind_it_too(line):
    assert line.says() == [("run", "never run with these settings")] * 2
    assert not (line.folder / "runs").exists()


def test_a_stage_that_is_done_is_skipped(line):
    line.run()
    assert line.says() == [DONE, DONE]


def test_changed_settings_are_named_with_their_old_and_new_value(line):
    line.run()
    changed = stage("two", needs=("one",), files={"b.txt": "c\n"}, facts={"rows": 1})
    reason = 'settings changed (facts: null -> {"rows":1}; files.b.txt: "b\\n" -> "c\\n")'
    assert line.says(line.stages[0], changed) == [DONE, ("run", reason)]


def test_many_changed_settings_are_counted(line):
    line.run(stage("one", a=1, b=1, c=1, d=1, e=1))
    assert line.says(stage("one", a=2, b=2, c=2, d=2, e=2)) == [("run", "settings changed (a: 1 -> 2; b: 1 -> 2; c: 1 -> 2 and 2 more)")]


def test_a_stage_behind_one_that_would_run_waits_for_it(line):
    line.run()
    (line.shelf.published("one", line.plan()[0].key) / "a.txt").write_text("edited\n")
    assert line.says() == [
        ("run", "its output a.txt is missing or was edited"),
        ("run", "waits for one; skipped if its result is the same"),
    ]


def test_a_missing_output_is_named(line):
    line.run()
    (line.shelf.published("two", line.plan()[1].key) / "b.txt").unlink()
    assert line.says() == [DONE, ("run", "its output b.txt is missing or was edited")]


def test_a_missing_list_of_digests_is_named(line):
    line.run()
    (line.shelf.published("two", line.plan()[1].key) / "SHA256SUMS").unlink()
    assert line.says() == [DONE, ("run", "its output SHA256SUMS is missing or was edited")]


def test_other_bytes_upstream_under_the_same_key_are_a_reason(line):
    counted = [stage("one", "count"), line.stages[1]]
    line.run(*counted)
    line.run(counted[0], forced=("one",))
    assert line.says(*counted) == [DONE, ("run", "the result of one has other bytes than before")]


def test_a_changed_or_missing_file_of_a_volume_is_named(line):
    model = line.volumes.models / "m" / "w.safetensors"
    model.parent.mkdir()
    model.write_text("weights")
    reads = stage("one", volumes={"models:m/w.safetensors": line.shelf.digests.of(model)})
    line.run(reads)
    assert line.says(reads) == [DONE]
    model.write_text("other weights")
    assert line.says(reads) == [("run", "models:m/w.safetensors is missing or was changed")]
    model.unlink()
    assert line.says(reads) == [("run", "models:m/w.safetensors is missing or was changed")]


def test_a_setting_deep_in_a_list_is_named_with_its_place(line):
    rows = [{"file": "a.jsonl", "variables": {"name": "us"}}, {"file": "b.jsonl", "variables": {}}]
    line.run(stage("one", parts=rows))
    changed = [rows[0] | {"variables": {"name": "you"}}, rows[1]]
    assert line.says(stage("one", parts=changed)) == [("run", 'settings changed (parts[0].variables.name: "us" -> "you")')]
    assert line.says(stage("one", parts=rows[:1]))[0][1].startswith('settings changed (parts: [{"file":"a.jsonl"')


def test_a_damaged_record_is_none(line):
    line.run()
    (line.shelf.published("one", line.plan()[0].key) / "stage.json").write_text('{"stage": "on')
    assert line.says()[0] == ("run", "the record of its result is missing or damaged")


def test_interrupted_work_is_resumed(line):
    line.shelf.partial("one", line.plan()[0].key).mkdir(parents=True)
    assert line.says()[0] == ("resume", "was interrupted; goes on from what is complete")


def test_a_stage_that_keeps_no_checkpoints_begins_anew(line):
    anew = replace(line.stages[0], resumes=False)
    line.shelf.partial("one", line.plan(anew)[0].key).mkdir(parents=True)
    assert line.says(anew) == [("run", "never run with these settings")]


def test_forced_stages_run_whatever_is_there(line):
    line.run()
    assert line.says(forced=True) == [("run", "forced")] * 2


def test_going_back_to_earlier_settings_finds_the_earlier_result(line):
    line.run(stage("one", a=1))
    line.run(stage("one", a=2))
    assert line.says(stage("one", a=1)) == [DONE]
