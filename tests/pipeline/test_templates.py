"""XTuner's templates by name: the ids of its rules, the same text through Jinja, and one count of begins and ends."""

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encoding import TEXT, spans

from tunestation.data.encoding import IGNORE, encode, encode_prompt
from tunestation.data.formats import Message
from tunestation.data.rendering import render
from tunestation.data.templates import TEMPLATES
from tunestation.data.tokenizers import load_tokenizer, set_template
from tunestation.errors import InputError
from tunestation.settings import PROJECT

GOLDEN = json.loads((Path(__file__).parent / "golden/xtuner.json").read_text(encoding="utf-8"))
"""Template -> ids and the places of the learned ones, worked out by XTuner's rules without this project's code."""
BY_NAME = [name for name, template in TEMPLATES.items() if template.turns]
XTUNER = [name for name in BY_NAME if name != "llama2"]
ENDS = ["<end_of_turn>", "<eoa>", "<|END_OF_TURN_TOKEN|>", "<|end|>", "<|eot_id|>", "<｜end▁of▁sentence｜>"]


@cache
def station(name: str):
    """The starter's tokenizer with `<s>`, `</s>` and the stop tokens of all templates."""
    tokenizer = load_tokenizer(PROJECT / "src/tunestation/starter/model", "starter")
    special = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>", *ENDS]}
    tokenizer.add_special_tokens(special)
    set_template(tokenizer, name, None)
    return tokenizer


def dialogue(name: str) -> list[Message]:
    system = [] if name == "minicpm" else [Message("system", "Be brief.")]
    turns = [("Who are you?", "I am an assistant."), ("2 + 3?", "2 + 3 = 5.")]
    return system + [message for q, a in turns for message in (Message("user", q), Message("assistant", a))]


def text(tokenizer, messages: list[Message], prompt: bool = False) -> str:
    return render(tokenizer, [message.turn() for message in messages], prompt)


def test_every_template_of_xtuner_is_there():
    assert set(XTUNER) == set(GOLDEN)


@pytest.mark.parametrize("name", XTUNER)
def test_the_ids_and_labels_are_those_of_xtuners_rules(name):
    encoded = encode(station(name), dialogue(name))
    assert encoded.input_ids == GOLDEN[name]["input_ids"]
    assert [n for n, label in enumerate(encoded.labels) if label != IGNORE] == GOLDEN[name]["learned"]


@pytest.mark.parametrize("name", BY_NAME)
def test_the_jinja_form_renders_the_text_of_the_pieces(name):
    tokenizer, messages = station(name), dialogue(name)
    assert text(tokenizer, messages) == tokenizer.decode(encode(tokenizer, messages).input_ids)
    prompt = tokenizer.decode(encode_prompt(tokenizer, messages[:-1]))
    assert text(tokenizer, messages[:-1], prompt=True) == prompt


@pytest.mark.parametrize("name", BY_NAME)
def test_each_answer_is_learned_with_its_stop_token_and_begins_are_counted_once(name):
    tokenizer, turns = station(name), TEMPLATES[name].turns
    encoded = encode(tokenizer, dialogue(name))
    assert [tokenizer.decode(span) for span in spans(encoded)] == [
        answer + turns.suffix + ("" if turns.suffix_as_eos else "</s>") for answer in ("I am an assistant.", "2 + 3 = 5.")
    ]
    assert encoded.input_ids.count(tokenizer.bos_token_id) == (1 if turns.suffix_as_eos else 2)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(BY_NAME), st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.none() | TEXT)
def test_whatever_is_typed_the_learned_ids_are_the_answers_and_their_stop_tokens(name, pairs, system):
    tokenizer, turns = station(name), TEMPLATES[name].turns
    first = [Message("system", system)] if system and turns.system else []
    messages = first + [message for q, a in pairs for message in (Message("user", q), Message("assistant", a))]
    encoded = encode(tokenizer, messages)
    end = turns.suffix + ("" if turns.suffix_as_eos else "</s>")
    assert [tokenizer.decode(span) for span in spans(encoded)] == [answer + end for _, answer in pairs]
    assert all(span.count(tokenizer.eos_token_id) == 1 and span[-1] == tokenizer.eos_token_id for span in spans(encoded))
    assert encode_prompt(tokenizer, messages[:-1]) == encoded.input_ids[: len(encode_prompt(tokenizer, messages[:-1]))]


def test_llama2_writes_the_system_text_inside_the_first_question_which_xtuners_llama2_chat_does_not():
    begin = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWho are you? [/INST]I am an assistant.</s><s>[INST] 2 + 3? [/INST]"
    assert text(station("llama2"), dialogue("llama2")).startswith(begin)
    assert "<</SYS>>\n [/INST] [INST] Who are you? [/INST]" in text(station("llama2_chat"), dialogue("llama2_chat"))


def test_rounds_are_counted_from_one():
    written = text(station("chatglm2"), dialogue("chatglm2"))
    assert "[Round 1]\n\n问：Who are you?\n\n答：" in written and "[Round 2]\n\n问：2 + 3?" in written


def test_a_system_text_may_stand_before_any_question():
    name = "internlm2_chat"
    messages = [*dialogue(name), Message("developer", "Now in French."), Message("user", "Bye."), Message("assistant", "Au revoir.")]
    assert "<|im_end|>\n<|im_start|>system\nNow in French.<|im_end|>\n" in station(name).decode(encode(station(name), messages).input_ids)


@pytest.mark.parametrize(
    ("name", "roles", "words"),
    [
        ("minicpm", ("system", "user", "assistant"), r"\(minicpm\) has no place for a system text"),
        ("qwen_chat", ("user", "user", "assistant"), "no place for the role 'user' after a message of the role 'user'"),
        ("qwen_chat", ("user", "assistant", "assistant"), "no place for the role 'assistant' after a message of the role 'assistant'"),
        ("zephyr", ("user", "assistant", "tool", "assistant"), "no place for the role 'tool'"),
    ],
)
def test_messages_without_a_place_in_the_template_are_refused(name, roles, words):
    with pytest.raises(InputError, match=words):
        encode(station(name), [Message(role, "x") for role in roles])
