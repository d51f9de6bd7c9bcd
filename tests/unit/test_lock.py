"""A run beside its lock: exact, within tolerance, differs, or not comparable, always with the reason."""

import json

import pytest

from tunestation.errors import InputError
from tunestation.pipeline import lock
from tunestation.pipeline.lock import Comparison
from tunestation.pipeline.stage import Stage

TRAIN = Stage("train", "m:f", {})
PREPARE = Stage("prepare", "m:f", {}, exact=True)


def record(kind: str = "1 x Card", python: str = "3.11.7", **changes) -> dict:
    """What a run of a stage wrote down."""
    plain = {"key": "k", "tools": {"torch": "2.13.0"}, "needs": {"prepare": "p"}, "outputs": "o", "facts": {"rows": 3}, "volumes": {}}
    return plain | {"metrics": {"loss": 2.0}, "machine": {"kind": kind, "python": python}, "seconds": 1.0, "observed": {}} | changes


NEAR = "metrics within 1.00% (loss, of 5% allowed)"


def verdict(now: dict, then: dict | None = None, stage: Stage = TRAIN) -> tuple[str, str]:
    """The comparison of a run with the lock of a run `then`."""
    locked = lock.make({stage.name: then or record()}, {}, "r", {})
    (found,) = lock.compare([stage], {stage.name: now}, locked)
    return found.verdict, found.reason


def test_equal_bytes_are_exact():
    assert verdict(record()) == ("exact", "bit-equal")
    assert verdict(record(kind="8 x Other", needs={"prepare": "other"})) == ("exact", "bit-equal")


def test_other_bytes_on_another_kind_of_device_are_compared_by_metrics():
    other = record(kind="1 x Other", outputs="x", metrics={"loss": 2.02})
    assert verdict(other) == ("within tolerance", NEAR)


def test_a_metric_outside_its_tolerance_differs():
    other = record(kind="1 x Other", outputs="x", metrics={"loss": 2.2})
    assert verdict(other) == ("differs", "loss is off by 10.00%")


def test_a_better_metric_outside_its_tolerance_differs_too():
    assert verdict(record(kind="1 x Other", outputs="x", metrics={"loss": 1.0})) == ("differs", "loss is off by 50.00%")


@pytest.mark.parametrize("metrics", [{}, {"loss": float("nan")}])
def test_a_missing_metric_and_one_that_is_no_number_differ(metrics):
    assert verdict(record(kind="1 x Other", outputs="x", metrics=metrics))[0] == "differs"


def test_other_bytes_from_equal_inputs_on_the_same_kind_of_device_differ_whatever_the_metrics_say():
    assert verdict(record(outputs="x")) == ("differs", "other bytes from equal inputs, versions and kind of device")


@pytest.mark.parametrize(("now", "then"), [("never", "never"), ("never", "with X 1"), ("with X 1", "never"), ("with X 2", "with X 1")])
def test_where_a_gpu_sums_in_no_fixed_order_or_by_other_means_other_bytes_are_compared_by_metrics(now, then):
    now, then = record(repeats=now), record(repeats=then)
    assert verdict(now | {"outputs": "x", "metrics": {"loss": 2.02}}, then) == ("within tolerance", NEAR)
    assert verdict(now | {"outputs": "x", "metrics": {"loss": 2.2}}, then)[0] == "differs"
    assert lock.entry(then)["repeats"] == then["repeats"]


def test_where_both_promise_equal_bytes_by_the_same_means_others_differ():
    assert verdict(record(outputs="x", repeats="with X 1"), record(repeats="with X 1"))[0] == "differs"
    assert "repeats" not in lock.entry(record(repeats="always"))


def test_other_bytes_from_other_bytes_upstream_are_compared_by_metrics():
    assert verdict(record(outputs="x", needs={"prepare": "q"})) == ("within tolerance", "metrics within 0.00%")


def test_a_stage_that_is_exact_on_every_machine_differs_there_too():
    assert verdict(record(kind="1 x Other", outputs="x"), stage=PREPARE)[0] == "differs"


def test_under_another_python_equal_bytes_are_exact_and_other_bytes_are_no_failure():
    assert verdict(record(python="3.12.3"), stage=PREPARE) == ("exact", "bit-equal")
    found = verdict(record(python="3.12.3", outputs="x"), stage=PREPARE)
    assert found == ("not comparable", "other bytes under another Python: 3.11 -> 3.12")
    assert verdict(record(python="3.12.3", outputs="x")) == ("within tolerance", "metrics within 0.00%")
    assert verdict(record(python="3.12.3", outputs="x", metrics={"loss": 2.2}))[0] == "differs"


def test_a_bug_fix_of_python_excuses_nothing_and_neither_does_an_older_lock_without_its_version():
    assert verdict(record(python="3.11.9", outputs="x"), stage=PREPARE)[0] == "differs"
    locked = lock.make({"prepare": record()}, {}, "r", {})
    del locked["stages"]["prepare"]["python"]
    (found,) = lock.compare([PREPARE], {"prepare": record(python="3.12.3", outputs="x")}, locked)
    assert found.verdict == "differs"


def test_other_facts_differ_and_are_named():
    other = record(kind="1 x Other", outputs="x", facts={"rows": 4})
    assert verdict(other) == ("differs", "facts: rows: 3 -> 4")


def test_without_metrics_other_bytes_on_another_device_are_within_tolerance_and_say_why():
    other, then = record(kind="1 x Other", outputs="x", metrics={}), record(metrics={})
    why = "other bytes, on another kind of device or Python, from inputs within tolerance, or by a GPU in no fixed order"
    assert verdict(other, then) == ("within tolerance", why)


def test_other_versions_are_not_comparable_and_are_named():
    assert verdict(record(key="l", tools={"torch": "2.14.0"})) == ("not comparable", 'other versions: torch: "2.13.0" -> "2.14.0"')


def test_other_settings_are_not_comparable():
    assert verdict(record(key="l")) == ("not comparable", "other settings, data, code or earlier stages")


def test_a_stage_that_the_lock_does_not_know_is_not_comparable():
    assert lock.compare([TRAIN], {"train": record()}, {}) == [Comparison("train", "not comparable", "the lock has no such stage")]


def test_only_a_difference_fails_a_reproduction():
    verdicts = ("exact", "within tolerance", "not comparable")
    assert not lock.differs([Comparison("s", verdict, "") for verdict in verdicts])
    assert lock.differs([Comparison("s", "exact", ""), Comparison("t", "differs", "")])


def test_a_tolerance_set_by_hand_survives_an_update_of_the_lock():
    before = lock.make({"train": record()}, {}, "r", {})
    before["stages"]["train"]["metrics"]["loss"]["tolerance"] = 0.001
    after = lock.make({"train": record(metrics={"loss": 3.0, "accuracy": 0.9})}, {"model x": "c" * 40}, "s", before)
    assert after["stages"]["train"]["metrics"] == {
        "loss": {"value": 3.0, "tolerance": 0.001},
        "accuracy": {"value": 0.9, "tolerance": 0.05},
    }
    assert (after["resolved"], after["recipe_sha256"]) == ({"model x": "c" * 40}, "s")


def test_a_lock_reads_back_and_its_lines_can_be_compared_by_people(tmp_path):
    path = lock.path_of(tmp_path / "small.yaml")
    made = lock.make({"train": record()}, {}, "r", {})
    lock.write(path, made)
    assert path.name == "small.lock.json"
    assert lock.read(path) == made
    assert '      "outputs": "o",\n' in path.read_text()
    assert [name.name for name in tmp_path.iterdir()] == ["small.lock.json"]


def test_nothing_that_changes_from_run_to_run_is_compared():
    locked = lock.make({"train": record()}, {}, "r", {})["stages"]["train"]
    assert not {"seconds", "observed", "finished", "machine"} & set(locked)


def test_a_recipe_without_lock_has_an_empty_one_and_a_damaged_one_is_told(tmp_path):
    assert lock.read(tmp_path / "none.lock.json") == {}
    path = tmp_path / "small.lock.json"
    path.write_text(json.dumps({"stages": {}})[:-1] + "\n<<<<<<< HEAD\n")
    with pytest.raises(InputError, match=r"small.lock.json: this lock is not JSON: .* Take the committed one again"):
        lock.read(path)
    path.write_text('{"schema_version": 99}')
    with pytest.raises(InputError, match=r"small.lock.json: this lock has schema_version 99; version 1 is known here. Take the committed"):
        lock.read(path)
    path.write_text("[]")
    with pytest.raises(InputError, match=r"small.lock.json: this lock is no JSON object. Take the committed one again"):
        lock.read(path)
