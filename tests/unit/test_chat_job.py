"""What the chat process is asked to do, and what it says and keeps. No torch here."""

import json
import string
import subprocess
import sys

import pytest
from pydantic import ValidationError

from tunestation.chat.main import ChatJob
from tunestation.chat.talks import Shelf, Talk, Turn, Votes, new_id, to_jsonl
from tunestation.chat.words import WORDS, preferred
from tunestation.data.formats import FORMATS
from tunestation.data.problems import Problems
from tunestation.data.readers import read_rows
from tunestation.recipe.formats import MessagesFormat
from tunestation.settings import child_environment

JOB = '{"action": "ask", "name": "n", "title": "t", "folder": "f", "weights": {"model": "m"}, '


def test_a_job_is_read_from_json_with_the_recipe_s_generation_defaults():
    job = ChatJob.model_validate_json(JOB + '"prompts": ["a", "b"]}')
    assert (job.prompts, job.port, job.public, job.generation.temperature, job.weights.precision) == (("a", "b"), 7860, False, 0.1, "16bit")


@pytest.mark.parametrize(("field", "named"), [('"question": "?"', "question"), ('"port": 70000', "port"), ('"action": "x"', "action")])
def test_a_job_with_an_unknown_key_or_an_impossible_value_is_refused(field, named):
    with pytest.raises(ValidationError, match=named):
        ChatJob.model_validate_json(JOB + field + "}")


def test_nothing_heavy_is_imported_before_the_job_is_read():
    loaded = "import sys, tunestation.chat.main; print([name for name in ('torch', 'transformers', 'gradio') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", loaded], env=child_environment({}), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_page_says_the_same_in_both_languages():
    english, chinese = (
        {key: {name for _, name, _, _ in string.Formatter().parse(text) if name} for key, text in words.items()} for words in WORDS.values()
    )
    assert english == chinese


@pytest.mark.parametrize(("wanted", "language"), [("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("en-GB,zh", "en"), ("fr-FR,zh-TW", "zh"), ("", "en")])
def test_the_page_speaks_the_language_that_the_browser_asks_for_first(wanted, language):
    assert preferred(wanted) == language


def talk() -> Talk:
    turns = [Turn("Hi", "Hello.", "Hey."), Turn("stopped"), Turn("And\n你?", "Well.", "Better.", better="base"), Turn("So?", base="Yes.")]
    return Talk(system="Be kind.", turns=turns)


def test_each_model_is_told_its_own_answers_and_the_other_s_where_it_was_not_asked():
    assert [message["content"] for message in talk().messages("tuned")] == ["Be kind.", "Hi", "Hello.", "And\n你?", "Well.", "So?", "Yes."]
    assert [message["content"] for message in talk().messages("base", 3)] == ["Be kind.", "Hi", "Hey.", "And\n你?", "Better."]


def test_a_turn_is_voted_on_once_and_only_with_two_answers():
    turns = [Turn("Hi", "Hello.", "Hey."), Turn("Hi", "Hello.", "Hey.", better="same"), Turn("Hi", "Hello."), Turn("Hi")]
    assert [Talk(turns=[turn]).undecided for turn in turns] == [True, False, False, False]
    assert not Talk().undecided


def test_exported_conversations_are_read_back_as_training_data_with_the_better_answers(tmp_path):
    file = tmp_path / "conversations.jsonl"
    file.write_text(to_jsonl([talk(), Talk(turns=[Turn("never answered")])]), encoding="utf-8")
    (row,) = read_rows(file, file.name, Problems(file.name))
    found = [(message.role, message.content) for message in FORMATS["messages"].read(MessagesFormat(kind="messages"), row).messages]
    assert found[:3] == [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello.")]
    assert found[3:] == [("user", "And\n你?"), ("assistant", "Better."), ("user", "So?"), ("assistant", "Yes.")]


def test_a_browser_finds_its_own_conversations_newest_first_and_no_other_s(tmp_path):
    shelf, browser = Shelf(tmp_path), new_id()
    first, second = talk(), Talk(turns=[Turn("What is  your\nname?", "Tiny.")])
    shelf.save(browser, first)
    shelf.save(browser, second)
    assert [one.title for one in shelf.all(browser)] == ["What is your name?", "Hi"]
    assert shelf.get(browser, first.id) == first
    assert shelf.all(new_id()) == []
    first.turns.clear()
    shelf.save(browser, first)
    assert [one.id for one in shelf.all(browser)] == [second.id]


def test_a_conversation_that_two_windows_go_on_with_becomes_two(tmp_path):
    shelf, browser, first = Shelf(tmp_path), new_id(), talk()
    shelf.save(browser, first)
    here, there = shelf.get(browser, first.id), shelf.get(browser, first.id)
    for question in ("here", "again"):
        here.turns.append(Turn(question, "Yes."))
        shelf.save(browser, here)
    there.turns.append(Turn("there", "Yes."))
    shelf.save(browser, there)
    assert [one.turns[-1].question for one in shelf.all(browser)] == ["there", "again"]
    there.turns.clear()
    shelf.save(browser, there)
    assert shelf.all(browser) == [here]


@pytest.mark.parametrize("name", ["../../etc", "", "A" * 32, "0" * 31])
def test_names_that_come_from_a_browser_never_leave_the_folder(tmp_path, name):
    shelf = Shelf(tmp_path / "kept")
    shelf.save(name, talk())
    shelf.save(new_id(), Talk(id=name, turns=[Turn("Hi", "Hello.")]))
    assert shelf.all(name) == []
    assert shelf.get(name, name).turns == shelf.get(new_id(), name).turns == []
    assert list(tmp_path.rglob("*.json")) == []


def test_votes_are_appended_with_both_answers_and_counted(tmp_path):
    votes = Votes(tmp_path / "votes.jsonl")
    assert votes.count() == {"tuned": 0, "same": 0, "base": 0}
    for better in ("tuned", "tuned", "same"):
        one = talk()
        one.turns[2].better = better
        votes.add(one, 2)
    assert votes.count() == {"tuned": 2, "same": 1, "base": 0}
    row = json.loads((tmp_path / "votes.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert [message["content"] for message in row["messages"]] == ["Be kind.", "Hi", "Hello.", "And\n你?"]
    assert (row["tuned"], row["base"], row["better"]) == ("Well.", "Better.", "tuned")


def test_a_vote_on_a_text_with_any_line_separator_is_one_vote(tmp_path):
    votes = Votes(tmp_path / "votes.jsonl")
    votes.add(Talk(turns=[Turn("a\u2028b\x85c\r\nd\x0be", "Yes.", "No.", better="tuned")]), 0)
    assert votes.count() == {"tuned": 1, "same": 0, "base": 0}


def test_a_vote_that_was_cut_off_spoils_neither_the_count_nor_the_next_vote(tmp_path):
    votes, one = Votes(tmp_path / "votes.jsonl"), Talk(turns=[Turn("你好", "Yes.", "No.", better="tuned")])
    votes.add(one, 0)
    line = (tmp_path / "votes.jsonl").read_bytes()
    for cut in range(1, len(line)):
        (tmp_path / "votes.jsonl").write_bytes(line + line[:cut])
        votes.add(one, 0)
        assert votes.count()["tuned"] == 2 + (cut == len(line) - 1)
