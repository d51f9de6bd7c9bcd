"""Whatever stands in a row, every format answers with a conversation, a reason, or a problem that names the row. Never a traceback."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunestation.data.conversations import Conversation, Dropped, to_conversation
from tunestation.data.formats import FORMATS
from tunestation.data.formats.auto import recognise
from tunestation.data.readers import Row, Unreadable
from tunestation.errors import InputError
from tunestation.recipe.data import DataPart

NAMES = [
    "messages",
    "conversations",
    "conversation",
    "role",
    "content",
    "from",
    "value",
    "system",
    "input",
    "output",
    "instruction",
    "text",
    "prompt",
    "completion",
    "response",
    "question",
    "answer",
    "chosen",
    "rejected",
    "chat",
    "turn_1",
    "Human",
    "MOSS",
    "Commands",
    "tools",
    "tool_calls",
    "function",
    "function_call",
    "name",
    "arguments",
    "loss",
    "weight",
    "history",
    "type",
    "image",
    "meta_instruction",
]
TEXTS = [
    "",
    " ",
    "user",
    "assistant",
    "tool",
    "human",
    "gpt",
    "function_call",
    "### Human: a### Assistant: b",
    "\ud83d",
    "{",
    "[1]",
    "None",
]
TEXTS += [
    '{"name": "f", "arguments": "{}"}',
    "<|startofthink|>{}<|endofthink|>",
    '<|startofthink|>{"api_name": "f"}<|endofthink|>',
    "(" * 300,
]
leaves = (
    st.none() | st.booleans() | st.integers(-1, 2) | st.floats() | st.sampled_from(TEXTS) | st.just(Unreadable("is merged", "Unmerge."))
)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4))
turns = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "from", "value", "tool_calls", "loss"]), values, max_size=4), max_size=4
)
rows = st.dictionaries(st.sampled_from(NAMES), values | turns, min_size=1, max_size=6)
KINDS = sorted(FORMATS)


def part(kind: str) -> DataPart:
    fields = {"columns": {"input": "question", "output": "answer", "system": "system"}}.get(kind, {})
    source = {"kind": "files", "paths": ("x.jsonl",)}
    return DataPart.model_validate({"source": source, "format": {"kind": kind, **fields}, "system": "S", "variables": {"name": "N"}})


@pytest.mark.parametrize("kind", KINDS)
@given(values=rows)
@settings(max_examples=25)
def test_any_row_is_read_dropped_or_told(kind, values):
    try:
        found = to_conversation(Row(values, "x.jsonl:7"), part(kind))
    except InputError as error:
        problems = error.problems
        assert all(problem.where == "x.jsonl:7" and problem.what for problem in problems)
        return
    assert found.where == "x.jsonl:7"
    if isinstance(found, Dropped):
        assert found.reason
        return
    assert isinstance(found, Conversation)
    if found.text is not None:
        assert found.text.strip() and not found.messages
        return
    assert found.messages[-1].role == "assistant" and any(turn.loss for turn in found.messages if turn.role == "assistant")
    assert all(turn.content.strip() or turn.tool_calls or turn.role == "tool" for turn in found.messages)
    assert all(message.content.encode() is not None for message in found.messages)


@given(values=rows, objective=st.sampled_from(["sft", "pretrain"]))
def test_any_file_is_recognised_or_asked_about(values, objective):
    try:
        reads = recognise([Row(values, "x.jsonl:1")], objective, "x.jsonl").reads
    except InputError as error:
        reads = error.problems
    assert reads
