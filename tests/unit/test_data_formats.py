"""From rows to conversations: what each format makes of a row, what is dropped and why, what is an error."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tunestation.data.conversations import Conversation, Dropped, to_conversation
from tunestation.data.formats import FORMATS, Draft, Message, row_format
from tunestation.data.parts import outcomes
from tunestation.data.problems import Problems
from tunestation.data.readers import Row, read_rows
from tunestation.errors import InputError
from tunestation.recipe.data import DataPart
from tunestation.recipe.formats import ColumnsFormat, ConversationFormat, MessagesFormat, TableFormat
from tunestation.recipe.sources import FileSource

SHARED = Path(__file__).parents[2] / "../shared/data"
MESSAGES, ALPACA, CONVERSATION = MessagesFormat(kind="messages"), TableFormat(kind="alpaca"), ConversationFormat(kind="conversation")
UNTRAINED = {"input": "a", "output": "b", "output_with_loss": False}
COLUMNS = ColumnsFormat(kind="columns", input="q", output="a")


def read(format, values, **part):
    source = FileSource(kind="files", paths=("x.jsonl",))
    return to_conversation(Row(values, "x.jsonl:7"), DataPart(source=source, format=format, **part))


def turns(format, values, **part):
    found = read(format, values, **part)
    assert isinstance(found, Conversation), found
    return [(message.role, message.content) for message in found.messages]


def dropped(format, values) -> str:
    found = read(format, values)
    assert isinstance(found, Dropped)
    assert found.where == "x.jsonl:7"
    return found.reason


def error(format, values, **part) -> str:
    with pytest.raises(InputError) as caught:
        read(format, values, **part)
    return str(caught.value)


def chat(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def test_messages_are_taken_as_they_are():
    row = chat(("system", "Be kind."), ("user", " Hi\n"), ("assistant", "你好 👋"), ("user", "?"), ("assistant", "!"))
    assert turns(MESSAGES, row) == [(turn["role"], turn["content"]) for turn in row["messages"]]


def test_a_message_with_loss_false_stays_as_context():
    row = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    row["messages"][1]["loss"] = False
    assert [message.loss for message in read(MESSAGES, row).messages if message.role == "assistant"] == [False, True]


def test_alpaca_joins_instruction_and_input_by_one_newline_only_if_there_is_an_input():
    assert turns(ALPACA, {"instruction": "Add", "input": "1 2", "output": "3"}) == [("user", "Add\n1 2"), ("assistant", "3")]
    assert turns(ALPACA, {"instruction": "Hi", "input": "", "output": "Yo"}) == [("user", "Hi"), ("assistant", "Yo")]
    assert turns(ALPACA, {"instruction": "Hi", "input": None, "output": "Yo"}) == [("user", "Hi"), ("assistant", "Yo")]


def test_alpaca_rows_may_have_a_system_text():
    assert turns(ALPACA, {"instruction": "Hi", "output": "Yo", "system": "S"})[0] == ("system", "S")


def test_xtuner_turns_become_messages_with_their_loss():
    row = {
        "conversation": [
            {"system": "S", "input": "a", "output": "b", "output_with_loss": False},
            {"input": "c", "output": "d"},
        ]
    }
    found = read(CONVERSATION, row)
    assert [(turn.role, turn.content, turn.loss) for turn in found.messages] == [
        ("system", "S", True),
        ("user", "a", True),
        ("assistant", "b", False),
        ("user", "c", True),
        ("assistant", "d", True),
    ]


def test_columns_ask_and_answer_and_may_hold_a_system_text():
    with_system = ColumnsFormat(kind="columns", input="q", output="a", system="s")
    assert turns(COLUMNS, {"q": "1", "a": "2", "b": 3}) == [("user", "1"), ("assistant", "2")]
    assert turns(with_system, {"q": "1", "a": "2", "s": "S"}) == [("system", "S"), ("user", "1"), ("assistant", "2")]


def test_a_new_format_is_one_function():
    @row_format("shouted", columns=lambda params: ("text",))
    def shouted(params, row):
        return Draft([Message("user", row.values["text"]), Message("assistant", row.values["text"].upper())])

    part = SimpleNamespace(format=SimpleNamespace(kind="shouted"), system=None, variables={})
    try:
        assert to_conversation(Row({"text": "hi"}, "x:1"), part).messages[1].content == "HI"
    finally:
        del FORMATS["shouted"]


@pytest.mark.parametrize(
    ("format", "values", "reason"),
    [
        (COLUMNS, {"q": "1", "a": ""}, "empty answer"),
        (COLUMNS, {"q": "1", "a": None}, "empty answer"),
        (COLUMNS, {"q": "1"}, "empty answer"),
        (COLUMNS, {"q": " ", "a": "2"}, "empty question"),
        (ALPACA, {"instruction": "", "input": "", "output": "x"}, "empty question"),
        (ALPACA, {"instruction": "x", "output": " \n"}, "empty answer"),
        (ALPACA, {"instruction": "x", "output": "<nooutput>"}, "empty answer"),
        (MESSAGES, {"messages": []}, "no answer"),
        (MESSAGES, chat(("user", "anyone?")), "no answer"),
        (MESSAGES, chat(("system", "S")), "no answer"),
        (MESSAGES, chat(("user", "a"), ("assistant", "")), "empty answer"),
        (MESSAGES, chat(("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "c")), "empty answer"),
        (MESSAGES, chat(("assistant", "Hello!")), "begins with an answer: no question before it"),
        (MESSAGES, chat(("assistant", "Hello!"), ("user", "a")), "begins with an answer: no question before it"),
        (CONVERSATION, {"conversation": [{"input": "", "output": "text to continue"}]}, "empty question"),
        (CONVERSATION, {"conversation": [{"input": "a", "output": ""}]}, "no answer"),
        (
            CONVERSATION,
            {"conversation": [{"input": "a", "output": "b", "output_with_loss": False}]},
            "all labels are masked: no answer has loss",
        ),
    ],
)
def test_a_row_that_cannot_be_trained_is_dropped_with_its_reason(format, values, reason):
    assert dropped(format, values) == reason


def test_unanswered_turns_at_the_end_are_cut_off_and_told():
    found = read(MESSAGES, chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("user", "d")))
    assert [message.content for message in found.messages] == ["a", "b"]
    assert found.repaired == "cut 2 unanswered turns at the end"
    xtuner = read(CONVERSATION, {"conversation": [{"input": "a", "output": "b"}, {"input": "c", "output": ""}]})
    assert (len(xtuner.messages), xtuner.repaired) == (2, "cut 1 unanswered turn at the end")


def test_answers_before_the_first_question_are_cut_off_and_told():
    found = read(MESSAGES, chat(("system", "S"), ("assistant", "Hello!"), ("user", "a"), ("assistant", "b"), ("user", "c")))
    assert [message.content for message in found.messages] == ["S", "a", "b"]
    assert found.repaired == "cut 1 answer before the first question; cut 1 unanswered turn at the end"


@pytest.mark.parametrize(
    ("format", "values", "words"),
    [
        (MESSAGES, chat(("human", "a")), "messages[0] has the role 'human'. Known roles are system, developer, user, assistant, tool."),
        (MESSAGES, {"messages": [{"content": "a"}]}, "messages[0] has the role None."),
        (MESSAGES, chat(("user", 5)), "messages[0].content is a number, not a text."),
        (MESSAGES, chat(("user", [5])), "messages[0].content[0] is a number, not an object."),
        (MESSAGES, {"messages": [None]}, "messages[0] is null, not an object."),
        (MESSAGES, {"messages": [{"role": None, "content": "a"}]}, "messages[0] has the role None."),
        (MESSAGES, {"messages": "a"}, "messages is a text, not a list."),
        (MESSAGES, {"messages": ["a"]}, "messages[0] is a text, not an object."),
        (MESSAGES, {"messages": [{"role": "assistant", "content": "a", "loss": 1}]}, "messages[0].loss is a number, not true or false."),
        (CONVERSATION, {"conversation": {"input": "a"}}, "conversation is an object, not a list."),
        (CONVERSATION, {"conversation": [{"input": True}]}, "conversation[0].input is true or false, not a text."),
        (ALPACA, {"instruction": 3, "output": "x"}, "instruction is a number, not a text."),
        (COLUMNS, {"q": "x", "a": {"b": 1}}, "a is an object, not a text."),
        (COLUMNS, {"q": "x", "a": "\ud83d"}, "a holds half a character (\\ud83d)."),
    ],
)
def test_a_wrong_type_is_an_error_that_names_the_row_and_the_place(format, values, words):
    assert error(format, values).startswith(f"x.jsonl:7: {words}")


def of_a_file(format, *rows) -> list[str]:
    """The problems of a file with these rows."""
    found = Problems("x.jsonl")
    part = DataPart(source=FileSource(kind="files", paths=("x.jsonl",)), format=format)
    list(outcomes((Row(values, f"x.jsonl:{number}") for number, values in enumerate(rows, start=1)), part, "x.jsonl", found))
    return [str(problem) for problem in found.told()]


def test_a_missing_column_names_those_present():
    (told,) = of_a_file(ColumnsFormat(kind="columns", input="question", output="a"), {"q": "1", "a": "2"})
    assert told.startswith("x.jsonl: the format 'columns' reads the column 'question', but x.jsonl has: q, a.")


@pytest.mark.parametrize("format", [MESSAGES, ALPACA, CONVERSATION])
def test_a_file_of_another_format_is_refused_once_and_not_row_by_row(format):
    (told,) = of_a_file(format, {"text": "1"}, {"text": "2"})
    assert "but x.jsonl has: text" in told


def test_a_row_of_another_kind_in_the_same_file_is_named():
    (told,) = of_a_file(MESSAGES, chat(("user", "a"), ("assistant", "b")), {"q": "1", "a": "2"})
    assert told.startswith("x.jsonl:2: the row has no column 'messages', which 'messages' reads; it has: q, a.")


def test_a_column_that_only_some_rows_have_is_no_missing_column():
    assert of_a_file(COLUMNS, {"q": "1"}, {"q": "1", "a": "2"}) == []
    assert dropped(COLUMNS, {"q": "1"}) == "empty answer"


def test_the_parts_system_text_goes_to_rows_without_their_own():
    assert turns(COLUMNS, {"q": "1", "a": "2"}, system="S")[0] == ("system", "S")
    own = chat(("system", "own"), ("user", "a"), ("assistant", "b"))
    assert [text for role, text in turns(MESSAGES, own, system="S") if role == "system"] == ["own"]
    empty = chat(("system", " "), ("user", "a"), ("assistant", "b"))
    assert turns(MESSAGES, empty, system="S")[0] == ("system", "S")
    assert turns(MESSAGES, empty)[0] == ("user", "a")


def test_variables_fill_placeholders_in_every_text():
    row = {"q": "Who is {{ name }}?", "a": "{{name}}, by {{author}}. {not} {{}}"}
    found = turns(COLUMNS, row, system="You are {{name}}.", variables={"name": "N\\1", "author": "{{name}}"})
    assert found == [("system", "You are N\\1."), ("user", "Who is N\\1?"), ("assistant", "N\\1, by {{name}}. {not} {{}}")]


def test_a_placeholder_without_a_value_is_an_error_that_names_the_row():
    words = error(COLUMNS, {"q": "a", "a": "I am {{name}} by {{author}}."}, variables={"name": "N"})
    assert words == "x.jsonl:7: the placeholder {{author}} has no value. Add 'author' to the part's variables, which has: name."


def test_without_variables_double_braces_are_left_alone():
    assert turns(COLUMNS, {"q": "Jinja?", "a": "{{ x }}"})[1] == ("assistant", "{{ x }}")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside this checkout")
def test_the_self_introductions_get_name_and_author():
    rows = read_rows(SHARED / "identity.json", "identity.json", Problems("identity.json"))
    texts = [text for row in rows for _, text in turns(ALPACA, row.values, variables={"name": "NAME", "author": "AUTHOR"})]
    assert len(texts) == 182
    assert any("NAME" in text and "AUTHOR" in text for text in texts)
    assert not any("{{" in text for text in texts)


def test_every_column_of_a_question_is_needed_unless_it_may_be_missing():
    (told,) = of_a_file(TableFormat(kind="sql"), {"context": "CREATE TABLE x", "answer": "a"})
    assert "the format 'sql' reads the column 'question'" in told
    assert of_a_file(TableFormat(kind="medical"), {"instruction": "q", "output": "a"}) == []
