"""The formats that go by the name of a data set, and what they do better than the functions of that name in XTuner."""

import pytest
from reading import needs_shared, read_rows, shared

from tunestation.data.conversations import Conversation, Dropped, to_conversation
from tunestation.data.formats import FORMATS
from tunestation.data.formats.tables import TABLES
from tunestation.data.readers import Row
from tunestation.errors import InputError
from tunestation.recipe.data import DataPart

SOURCE = {"kind": "files", "paths": ("x.jsonl",)}


def read(kind, values, **part):
    fields = part.pop("fields", {})
    settings = DataPart.model_validate({"source": SOURCE, "format": {"kind": kind, **fields}, **part})
    return to_conversation(Row(values, "x.jsonl:7"), settings)


def turns(kind, values, **part) -> list[tuple[str, str]]:
    found = read(kind, values, **part)
    assert isinstance(found, Conversation), found
    return [(message.role, message.content) for message in found.messages]


XTUNER = [
    "alpaca", "alpaca_zh", "arxiv", "code_alpaca", "colors", "crime_kg_assitan", "default", "law_reference", "llava_image_only",
    "llava", "medical", "msagent_react", "oasst1", "openai", "openorca", "pretrain", "sql", "stack_exchange", "tiny_codes", "wizardlm",
]  # fmt: skip


def test_all_twenty_keys_of_xtuner_are_known_and_so_are_moss_and_its_other_spelling():
    assert len(XTUNER) == 20
    assert set(XTUNER) | {"moss", "crime_kg_assitant"} <= set(FORMATS)


@pytest.mark.parametrize(
    ("kind", "values", "system", "question", "answer"),
    [
        ("alpaca", {"instruction": "I", "input": "i", "output": "o", "text": "t"}, "", "I\ni", "o"),
        ("alpaca_zh", {"instruction_zh": "指", "input_zh": "", "output_zh": "出", "instruction": "I", "output": "o"}, "", "指", "出"),
        ("arxiv", {"abstract": "A", "title": "T"}, "If you are an expert in writing papers", "A", "T"),
        ("code_alpaca", {"prompt": "p", "completion": "c"}, "You are a professional programer.", "p", "c"),
        (
            "colors",
            {"description": "Red: a warm one : yes", "color": "#f00"},
            "You are a professional color designer.",
            "a warm one : yes",
            "#f00",
        ),
        ("crime_kg_assitant", {"input": "i", "output": "o"}, "你现在是一名专业的中国律师", "i", "o"),
        ("law_reference", {"question": "q", "answer": "a"}, "你现在是一名专业的中国律师", "q", "a"),
        ("default", {"input": "i", "output": "o"}, "", "i", "o"),
        ("medical", {"instruction": "I", "input": "i", "output": "o"}, "如果你是一名医生", "I\ni", "o"),
        ("openorca", {"system_prompt": "S", "question": "q", "response": "r", "id": 1}, "S", "q", "r"),
        ("openorca", {"system_prompt": "", "question": "q", "response": "r"}, "", "q", "r"),
        ("prompt_completion", {"prompt": "p", "completion": "c"}, "", "p", "c"),
        ("sql", {"context": "CREATE TABLE x", "question": "q", "answer": "a"}, "If you are an expert in SQL", "CREATE TABLE x\nq", "a"),
        ("stack_exchange", {"question": "q", "response": "r"}, "", "q", "r"),
        ("tiny_codes", {"prompt": "p", "response": "r"}, "You are a professional programer.", "p", "r"),
    ],
)
def test_tables_ask_answer_and_instruct_as_their_data_sets_do(kind, values, system, question, answer):
    *first, asked, said = turns(kind, values)
    assert (asked, said) == (("user", question), ("assistant", answer))
    assert [role for role, _ in first] == (["system"] if system else [])
    assert all(text.startswith(system) for _, text in first)


def test_the_system_texts_of_xtuner_end_with_a_newline_and_the_recipe_goes_before_them():
    assert all(table.system.endswith("\n") for table in TABLES.values() if table.system)
    row = {"question": "q", "answer": "a"}
    assert turns("law_reference", row, system="S")[0] == ("system", "S")
    assert turns("law_reference", row, system="")[0] == ("user", "q")
    assert turns("law_reference", row | {"system": "own"}, system="S")[0] == ("system", "own")


def test_earlier_turns_in_a_history_are_kept_in_order():
    row = {"instruction": "3", "output": "c", "system": "S", "history": [["1", "a"], ["2", "b"]]}
    assert [text for _, text in turns("alpaca", row)] == ["S", "1", "a", "2", "b", "3", "c"]
    with pytest.raises(InputError, match=r"x.jsonl:7: history is no list of pairs"):
        read("alpaca", row | {"history": [["1"]]})


def test_oasst1_splits_at_whole_markers_so_that_headings_in_answers_stay():
    text = "### Human: How?### Assistant: Like this:\n### 1. Begin\nand\n### 2. End\n### Human: Thanks### Assistant: Welcome"
    assert turns("oasst1", {"text": text}) == [
        ("user", "How?"),
        ("assistant", "Like this:\n### 1. Begin\nand\n### 2. End"),
        ("user", "Thanks"),
        ("assistant", "Welcome"),
    ]


def test_oasst1_keeps_roles_as_they_come_and_tells_a_trailing_question():
    found = read("oasst1", {"text": "### Human: a### Human: b\n### Assistant: c### Human: d"})
    assert [(turn.role, turn.content) for turn in found.messages] == [("user", "a"), ("user", "b"), ("assistant", "c")]
    assert found.repaired == "cut 1 unanswered turn at the end"


def test_oasst1_text_before_the_first_marker_is_told():
    assert read("oasst1", {"text": "Once ### Human: a### Assistant: b"}).reason == "the text begins with 'Once', not with '### Human:'"


def test_sharegpt_knows_its_speakers_and_keeps_every_turn():
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "user", "value": "c"},
                             {"from": "user", "value": "d"}, {"from": "chatgpt", "value": "e", "loss": False}], "system": "S"}  # fmt: skip
    for kind in ("sharegpt", "wizardlm"):
        assert [text for _, text in turns(kind, row)] == ["S", "a", "b", "c", "d", "e"]
    assert [turn.loss for turn in read("sharegpt", row).messages if turn.role == "assistant"] == [True, False]
    with pytest.raises(InputError, match=r"x.jsonl:7: conversations\[0\] is from 'narrator'. Known speakers are human, "):
        read("sharegpt", {"conversations": [{"from": "narrator", "value": "x"}]})


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def test_tool_calls_and_tool_answers_keep_the_form_that_chat_templates_render():
    row = {
        "tools": '[{"type": "function", "function": {"name": "add"}}]',
        "messages": [
            {"role": "developer", "content": "D"},
            {"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}], "name": "Ada"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", **CALL, "function": {"name": "add", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "content": "", "tool_call_id": "c1"},
            {"role": "assistant", "content": "2", "reasoning_content": "easy"},
        ],
    }
    found = read("openai", row)
    assert [message.turn() for message in found.messages] == [
        {"role": "developer", "content": "D"},
        {"role": "user", "content": "1+1?", "name": "Ada"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", **CALL}]},
        {"role": "tool", "content": "", "tool_call_id": "c1"},
        {"role": "assistant", "content": "2", "reasoning_content": "easy"},
    ]
    assert found.tools == ({"type": "function", "function": {"name": "add"}},)


def test_older_function_calls_become_tool_calls():
    openai = [{"role": "user", "content": "?"}, {"role": "assistant", "function_call": {"name": "add", "arguments": '{"a": 1}'}},
              {"role": "function", "name": "add", "content": "2"}, {"role": "assistant", "content": "2"}]  # fmt: skip
    sharegpt = [{"from": "human", "value": "?"}, {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
                {"from": "observation", "value": "2"}, {"from": "gpt", "value": "2"}]  # fmt: skip
    for found in (read("messages", {"messages": openai}), read("sharegpt", {"conversations": sharegpt})):
        assert found.messages[1].turn() == {"role": "assistant", "content": "", "tool_calls": [CALL]}
        assert (found.messages[2].role, found.messages[2].content) == ("tool", "2")


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"tool_calls": [{"function": {"arguments": "{}"}}]}, "messages[1].tool_calls[0].function has no name of a function."),
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "messages[1].tool_calls[0].function.arguments is a text that is no JSON",
        ),
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            "messages[1].tool_calls[0].function.arguments is a list, not an obj",
        ),
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1, "a": 2}'}}]},
            "messages[1].tool_calls[0].function.arguments has the key 'a' twice in one object.",
        ),
        ({"tool_calls": {"name": "f"}}, "messages[1].tool_calls is an object, not a list."),
        ({"content": "a", "weight": 0.5}, "messages[1].weight is 0.5."),
        ({"content": "a", "weight": 1, "loss": False}, "messages[1].loss and messages[1].weight say different things."),
    ],
)
def test_a_wrong_tool_call_or_weight_is_named(turn, words):
    with pytest.raises(InputError) as caught:
        read("messages", {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", **turn}]})
    assert str(caught.value).startswith(f"x.jsonl:7: {words}")


def test_openai_weights_say_which_answers_are_trained():
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
                        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1}]}  # fmt: skip
    assert [turn.loss for turn in read("openai", row).messages if turn.role == "assistant"] == [False, True]


def test_a_message_with_an_image_is_dropped_with_the_reason():
    row = {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "b"}]}
    assert read("messages", row).reason == "messages[0].content holds a part of type 'image_url'; only texts can be trained"


def test_llava_reads_rows_without_an_image_and_says_why_it_reads_no_other():
    talk = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}
    assert turns("llava", talk) == [("user", "Hi"), ("assistant", "Yo")]
    assert read("llava", talk | {"image": "x.jpg"}).reason == "the row is about an image; only texts can be trained"
    seen = {"conversations": [{"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": "Yo"}]}
    assert isinstance(read("llava_image_only", seen), Dropped)


def moss_turn(thoughts="None", commands="None", results="None"):
    return {
        "Human": "<|Human|>: Hi<eoh>\n",
        "Inner Thoughts": f"<|Inner Thoughts|>: {thoughts}<eot>\n",
        "Commands": f"<|Commands|>: {commands}<eoc>\n",
        "Tool Responses": f"<|Results|>: {results}<eor>\n",
        "MOSS": "<|MOSS|>: Hello <|not a mark|>!<eom>\n",
    }


def test_moss_turns_lose_their_marks_and_keep_their_tools():
    row = {
        "meta_instruction": "You are MOSS.\n",
        "num_turns": 2,
        "chat": {"turn_1": moss_turn(), "turn_2": moss_turn("hm", 'Search("x")', "\n<|1|>: y")},
    }
    assert turns("moss", row) == [
        ("system", "You are MOSS.\n"),
        ("user", "Hi"),
        ("assistant", "Hello <|not a mark|>!"),
        ("user", "Hi"),
        ("assistant", 'hm\nSearch("x")'),
        ("tool", "<|1|>: y"),
        ("assistant", "Hello <|not a mark|>!"),
    ]
    with pytest.raises(InputError, match=r"chat.turn_1 is null, not an object"):
        read("moss", {"chat": {"turn_2": moss_turn()}})


ASKED = '<|startofthink|>```JSON\n{"api_name": "add", "parameters": {"a": 1}}\n```<|endofthink|>'
AGENT = f'Sure.{ASKED}\n\n<|startofexec|>```JSON\n{{"sum": 2}}\n```<|endofexec|>\nIt is 2.'


@pytest.mark.parametrize("written", [lambda turns: turns, str])
def test_msagent_calls_become_tool_calls_and_a_list_written_as_python_is_never_run(written):
    row = {
        "conversations": written(
            [{"from": "system", "value": "Tools: add"}, {"from": "user", "value": "1+1?"}, {"from": "assistant", "value": AGENT}]
        )
    }
    found = read("msagent_react", row)
    assert [(message.role, message.content, message.tool_calls) for message in found.messages] == [
        ("system", "Tools: add", ()),
        ("user", "1+1?", ()),
        ("assistant", "Sure.", (CALL,)),
        ("tool", '{"sum": 2}', ()),
        ("assistant", "It is 2.", ()),
    ]
    with pytest.raises(InputError, match="conversations is a text that is no JSON"):
        read("msagent_react", {"conversations": "__import__('os').abort()"})
    broken = [{"from": "user", "value": "?"}, {"from": "assistant", "value": "<|startofthink|>{<|endofthink|>"}]
    assert read("msagent_react", {"conversations": broken}).reason == "conversations[1] holds a call that is no JSON"


def test_documents_are_kept_as_they_are_or_stripped_as_xtuner_does():
    assert read("text", {"text": " a\n"}).text == " a\n"
    assert read("text", {"body": "a"}, fields={"column": "body"}).text == "a"
    assert read("pretrain", {"text": " a\n"}).text == "a"
    assert read("text", {"text": " \n"}).reason == "empty text"


@needs_shared
def test_every_document_of_c4_is_read():
    found = [read("text", row.values) for row in read_rows(shared("c4_demo.jsonl"))]
    assert len(found) == 300 and all(one.text and one.messages == () for one in found)


def test_preference_pairs_are_read_from_texts_and_from_messages():
    texts = read("preference", {"prompt": "q", "chosen": "good", "rejected": "bad", "s": "S"}, fields={"system": "s"})
    assert [turn.content for turn in texts.messages] == ["S", "q", "good"] and texts.rejected[0].content == "bad"
    lists = {name: [{"role": "user", "content": "q"}, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    for row in (lists, lists | {"prompt": "q"}):
        found = read("preference", row)
        assert ([turn.content for turn in found.messages], found.rejected[0].content) == (["q", "chosen"], "rejected")


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("a", "a", "chosen and rejected are the same"),
        ("a", "", "chosen or rejected is missing"),
        (None, "a", "chosen or rejected is missing"),
    ],
)
def test_a_pair_that_compares_nothing_is_dropped(chosen, rejected, reason):
    assert read("preference", {"prompt": "q", "chosen": chosen, "rejected": rejected}).reason == reason


def test_a_pair_that_shares_no_prompt_is_told():
    row = {name: [{"role": "user", "content": name}, {"role": "assistant", "content": "x"}] for name in ("chosen", "rejected")}
    with pytest.raises(InputError, match="after the common prompt chosen holds user, assistant, not one answer"):
        read("preference", row)
