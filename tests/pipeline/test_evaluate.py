"""The evaluation: counting right answers, and failing where too few are."""

import json

import pytest
from station import recipe, record, sums

from tunestation.errors import InputError, TunestationError

PROMPTS = [f"What is {n} and {n}?" for n in range(6)]


def ask(station, questions, name="asked", **check):
    """Write a recipe that asks `questions` after training; returns its name."""
    station.write_rows(questions, f"{name}-questions.jsonl")
    asked = {"name": "sums", "source": {"kind": "files", "paths": [f"{name}-questions.jsonl"]}, **check}
    station.write(recipe(name=name, evaluate={"every_steps": 1000, "prompts": [], "checks": [asked]}))
    return name


@pytest.fixture(scope="module")
def answers(station):
    """What the model that is asked answers, by prompt."""
    name = ask(station, [{"prompt": prompt, "answer": "no such answer"} for prompt in PROMPTS])
    found = json.loads((station.make("evaluate", name=name) / "answers.json").read_text())
    told = {row["prompt"]: row["answer"] for row in found}
    assert list(told) == PROMPTS
    assert len(set(told.values())) > 1, "a model that always says the same cannot show how answers are counted"
    assert any(row["untuned"] != row["answer"] for row in found)
    return told


def known(answers, right):
    """Questions of which the first `right` have the model's own answer."""
    return [{"prompt": prompt, "answer": answer if n < right else "wrong"} for n, (prompt, answer) in enumerate(answers.items())]


def test_exact_answers_are_counted_for_the_tuned_and_the_untuned_model(station, answers):
    result = station.make("evaluate", name=ask(station, known(answers, 4), at_least=0.66))
    assert record(result)["metrics"] == {"sums": 0.6667, "sums_base": 0.0}
    assert record(result)["facts"] == {"sums": 6}
    assert record(result)["observed"] == {"by_topic": {"sums: all": "4/6"}}
    rows = json.loads((result / "answers.json").read_text())
    assert [row["right"] for row in rows] == [True] * 4 + [False] * 2
    assert "answers.json" in sums(result)


def test_texts_that_must_occur_may_hold_variables(station, answers):
    words = [max(answer.split(), key=len, default="") for answer in answers.values()]
    questions = [{"prompt": prompt, "contains": ["{{word}}"]} for prompt in PROMPTS]
    hits = sum(words[0] in answer for answer in answers.values())
    result = station.make("evaluate", name=ask(station, questions, match="contains", variables={"word": words[0]}))
    assert record(result)["metrics"]["sums"] == round(hits / 6, 4)
    assert hits > 0


def test_too_few_right_answers_fail_with_the_check_named_and_the_answers_kept(station, answers):
    name = ask(station, known(answers, 3), at_least=0.51)
    with pytest.raises(TunestationError, match=r"sums: 50.0% of the answers are right, at least 51.0% are demanded") as caught:
        station.make("evaluate", name=name)
    assert caught.value.exit_code == 1
    kept = station.logs("evaluate", name=name) / "answers.json"
    assert str(kept) in str(caught.value)
    assert [row["right"] for row in json.loads(kept.read_text())] == [True] * 3 + [False] * 3
    with pytest.raises(TunestationError, match=r"sums: 50\.0%"):
        station.make("evaluate", name=name)


def test_a_share_of_what_the_untuned_model_knew_can_be_demanded(station, answers):
    found = json.loads((station.make("evaluate", name=ask(station, known(answers, 6))) / "answers.json").read_text())
    untuned = [{"prompt": row["prompt"], "answer": row["untuned"]} for row in found]
    with pytest.raises(TunestationError, match=r"at least 90.0% are demanded"):
        station.make("evaluate", name=ask(station, untuned, at_least_of_base=0.9))


def test_a_row_that_is_no_question_is_named_by_file_and_line(station):
    name = ask(station, [{"prompt": PROMPTS[0], "answer": "1"}, {"prompt": PROMPTS[1]}], name="no-question")
    with pytest.raises(InputError, match=r"no-question-questions.jsonl:2: is no question"):
        station.make("evaluate", name=name)
