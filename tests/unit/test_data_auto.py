"""`format: auto` recognises a file by its columns and says so; where several formats fit it asks."""

import pytest
from reading import needs_shared, read_rows, shared

from tunestation.data.formats.auto import left_over, recognise
from tunestation.data.parts import outcomes
from tunestation.data.problems import Problems
from tunestation.data.readers import Row
from tunestation.errors import InputError
from tunestation.recipe.data import DataPart

SOURCE = {"kind": "files", "paths": ("x.jsonl",)}
TURN = {"role": "user", "content": "a"}
SHARE = {"from": "human", "value": "a"}


def rows(*values: dict) -> list[Row]:
    return [Row(each, f"x.jsonl:{number}") for number, each in enumerate(values, start=1)]


def found(values: dict, objective="sft") -> str:
    return str(recognise(rows(values), objective, "x.jsonl"))


def refused(values: dict, objective="sft") -> str:
    with pytest.raises(InputError) as caught:
        recognise(rows(values), objective, "x.jsonl")
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"messages": [TURN], "id": 1}, "messages (messages)"),
        ({"messages": [TURN], "tools": []}, "messages (messages, tools)"),
        ({"conversations": [TURN]}, "messages (conversations)"),
        ({"conversations": [SHARE], "system": "S"}, "sharegpt (conversations, system)"),
        ({"conversations": [SHARE], "image": "x.png"}, "llava (conversations, image)"),
        ({"conversation": [{"input": "a", "output": "b"}]}, "conversation (conversation)"),
        ({"conversation": [{"input": "", "output": "b"}], "input": 1}, "conversation (conversation)"),
        ({"instruction": "a", "input": "", "output": "b", "text": "a b"}, "alpaca (instruction, input, output)"),
        ({"instruction": "a", "output": "b", "history": []}, "alpaca (instruction, output, history)"),
        ({"instruction_zh": "a", "input_zh": "", "output_zh": "b"}, "alpaca_zh (instruction_zh, input_zh, output_zh)"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion (prompt, completion)"),
        ({"system_prompt": "s", "question": "a", "response": "b"}, "columns (system_prompt, question, response)"),
        ({"q": "a", "a": "b"}, "columns (q, a)"),
        ({"input": "a", "output": "b"}, "columns (input, output)"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "preference (prompt, chosen, rejected)"),
        ({"text": "### Human: a### Assistant: b"}, "oasst1 (text)"),
        ({"chat": {"turn_1": {}}, "meta_instruction": "m"}, "moss (meta_instruction, chat)"),
    ],
)
def test_a_file_is_recognised_by_its_columns(values, said):
    assert found(values) == said


@pytest.mark.parametrize("column", ["text", "content", "document"])
def test_documents_are_looked_for_when_the_objective_is_pretraining(column):
    assert found({column: "### Human: a", "messages": [TURN]}, "pretrain") == f"text ({column})"


def test_several_fitting_formats_are_named_and_none_is_guessed():
    both = {"instruction": "a", "output": "b", "instruction_zh": "a", "output_zh": "b"}
    assert refused(both) == (
        "x.jsonl: its columns fit several formats: alpaca (instruction, output); alpaca_zh (instruction_zh, output_zh). "
        "Name one, as 'format: {kind: alpaca}'."
    )
    assert "preference (prompt, chosen, rejected)" in refused({"messages": [TURN], "prompt": "p", "chosen": "a", "rejected": "b"})
    assert "text (text); text (content)" in refused({"text": "a", "content": "b"}, "pretrain")


def test_a_pair_is_not_chosen_when_another_column_belongs_to_the_question():
    assert refused({"context": "c", "question": "q", "answer": "a"}) == (
        "x.jsonl: no format is known by its columns: context, question, answer. "
        "These read such columns: law_reference, sql. Name one, or the columns, as 'format: {kind: columns, input: ..., output: ...}'."
    )


def test_unknown_columns_name_the_formats_that_would_read_them():
    assert "These read such columns: arxiv." in refused({"abstract": "a", "title": "t"})
    assert "no format is known by its columns: foo, bar. Name one, or the columns" in refused({"foo": 1, "bar": 2})
    assert "Name the column with the document" in refused({"messages": [TURN]}, "pretrain")


def part(**fields) -> DataPart:
    return DataPart.model_validate({"source": SOURCE, **fields})


def told(values: list[dict], **fields) -> tuple[list[str], list[str]]:
    """(what was said, what is wrong) of a file."""
    said, problems = [], Problems("x.jsonl")
    list(outcomes(rows(*values), part(**fields), "x.jsonl", problems, tell=said.append))
    return said, [str(problem) for problem in problems.told()]


def test_what_was_recognised_and_what_is_not_read_is_said_once_a_file():
    row = {"instruction": "a", "output": "b", "id": 3}
    assert told([row, row]) == (["x.jsonl: read as alpaca (instruction, output); not read: id."], [])
    assert told([row], format={"kind": "alpaca"}) == ([], [])


def test_a_row_of_another_kind_later_in_the_file_is_named():
    said, problems = told([{"messages": [TURN, TURN | {"role": "assistant"}]}] * 60 + [{"instruction": "a", "output": "b"}])
    assert said == ["x.jsonl: read as messages (messages)."]
    assert problems == [
        "x.jsonl:61: the row has no column 'messages', which 'messages' reads; it has: instruction, output. "
        "Put rows of another kind into a file and a source of their own."
    ]


def test_rows_of_two_kinds_mixed_from_the_start_are_asked_about():
    (problem,) = told([{"messages": [TURN]}, {"instruction": "a", "output": "b"}])[1]
    assert "fit several formats: messages (messages); alpaca (instruction, output)" in problem


def test_preference_pairs_are_read_and_checked_and_training_on_them_is_refused():
    good, bad = {"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": 1, "chosen": "a", "rejected": "b"}
    assert told([good, bad, good])[1] == [
        "x.jsonl:2: prompt is a number, not a text.",
        "x.jsonl: 2 preference pairs were read and checked, but there is no training on pairs yet (DPO, ORPO): it comes later. "
        "Use rows with one answer each.",
    ]


@needs_shared
@pytest.mark.parametrize(
    ("name", "objective", "said"),
    [
        ("career_coach.xlsx", "sft", "columns (q, a)"),
        ("alpaca_en_demo.json", "sft", "alpaca (instruction, input, output)"),
        ("alpaca_zh_demo.json", "sft", "alpaca (instruction, input, output)"),
        ("identity.json", "sft", "alpaca (instruction, input, output)"),
        ("c4_demo.jsonl", "pretrain", "text (text)"),
    ],
)
def test_the_real_files_are_recognised(name, objective, said):
    head = read_rows(shared(name))[:50]
    candidate = recognise(head, objective, name)
    assert str(candidate) == said and left_over(head, candidate) == []
