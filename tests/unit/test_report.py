"""What people see."""

import pytest

from tunestation.errors import InputError, Interrupted, Problem, ReproductionDiffers, TunestationError, from_json
from tunestation.report import Progress, duration, fitted, table, width, wrapped


def test_columns_are_aligned_also_where_chinese_characters_take_two_places():
    text = table([("你是谁？", "ours"), ("Who are you?", "x")], ("asked", "answer"))
    assert text.splitlines() == ["asked         answer", "------------  ------", "你是谁？      ours", "Who are you?  x"]
    assert {width(line.split("ours")[0].split("x")[0]) for line in text.splitlines()[2:]} == {14}


def test_a_table_without_header_or_rows():
    assert table([("a", "b")]) == "a  b"
    assert table([]) == ""
    assert table([], ("a", "b")) == "a  b\n-  -"


def test_cells_may_be_numbers_and_lines_have_no_blanks_at_their_ends():
    assert table([(1, "x"), (22, "")]) == "1   x\n22"


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_a_fitted_table_keeps_to_the_terminals_width_and_loses_no_word(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    long = " ".join(f"word{n}" for n in range(40))
    address = "https://example.org/" + "a" * 120
    text = fitted([("one", long, address), ("two", "你" * 90, "x")], ("name", "what it says", "where"))
    assert all(width(line) <= columns for line in text.splitlines())
    assert max(map(width, text.splitlines())) > columns - 6
    assert text.count("你") == 90 and all(f"word{n}" in text for n in range(40)) and text.count("a") >= 120
    assert [line.split()[0] for line in text.splitlines() if not line.startswith(" ")] == ["name", "----", "one", "two"]


def test_what_fits_is_not_wrapped(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert fitted([("a", "b c")], ("x", "y")) == table([("a", "b c")], ("x", "y"))
    assert wrapped("", 8) == [""]
    assert wrapped("a/b.c/file.txt", 8) == ["a/b.c/", "file.txt"]
    assert wrapped("-a well-known --option", 8) == ["-a well-", "known --", "option"]
    assert wrapped("eight and a half", 8) == ["eight", "and a", "half"]
    assert wrapped("0123456789", 4) == ["0123", "4567", "89"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (7.24, "7.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (3599.9, "1 h 00 min"),
    ],
)
def test_durations_are_written_for_people(seconds, text):
    assert duration(seconds) == text


def test_progress_in_a_pipe_is_a_line_with_what_is_left(capsys):
    progress = Progress(10, every_seconds=0)
    for done in range(1, 11):
        progress.show(done, "loss 1.0")
    progress.note("a checkpoint")
    progress.close("done")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[4].startswith("  ━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌ 5/10  loss 1.0  ")
    assert lines[9].endswith("0.0 s left")
    assert lines[10:] == ["  a checkpoint", "  done"]


def test_progress_tells_no_more_than_now_and_then_but_always_the_end(capsys):
    progress = Progress(1000, every_seconds=60)
    for done in range(1, 1001):
        progress.show(done, "")
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["1/1000", "1000/1000"]


def test_the_first_progress_is_told_also_on_a_machine_that_has_just_started(capsys, monkeypatch):
    monkeypatch.setattr("tunestation.report.time.monotonic", lambda: 1.0)
    Progress(1000, every_seconds=60).show(1, "")
    assert capsys.readouterr().out.split()[1] == "1/1000"


def test_what_is_left_after_a_resume_is_reckoned_from_the_steps_done_since(capsys, monkeypatch):
    clock = iter([0.0, 100.0, 120.0])  # made; training begins, after loading; ten steps later
    monkeypatch.setattr("tunestation.report.time.monotonic", lambda: next(clock))
    progress = Progress(110, every_seconds=0)
    progress.begin(90)
    progress.show(100, "loss 1.0")
    assert capsys.readouterr().out.endswith("100/110  loss 1.0  20.0 s left\n")


@pytest.mark.parametrize(("kind", "code"), [(TunestationError, 1), (Interrupted, 1), (InputError, 2), (ReproductionDiffers, 3)])
def test_an_error_comes_back_the_same_from_another_process(kind, code):
    error = kind(problems=[Problem("is wrong.", "x:1", "Mend it."), Problem("坏了。")])
    again = from_json(error.to_json())
    assert (type(again), again.problems, again.exit_code, str(again)) == (kind, error.problems, code, str(error))


def test_an_error_says_where_what_and_what_to_do():
    assert str(TunestationError("is wrong.", "x:1", "Mend it.")) == "x:1: is wrong. Mend it."
    assert str(TunestationError("is wrong.")) == "is wrong."
    assert str(InputError("is wrong.")) == "is wrong."
    assert str(InputError(problems=[Problem("a"), Problem("b")])) == "a\nb\n2 problems; nothing was run."
