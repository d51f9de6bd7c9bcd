"""Token ids and labels: only answers and their stop token are learned, and use sees the ids of training."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vocabularies import train_sentencepiece
from transformers import AutoTokenizer

from tunestation.data.encoding import IGNORE, Encoder, encode, encode_prompt
from tunestation.data.formats import Message
from tunestation.data.probe import probe
from tunestation.data.templates import TEMPLATES
from tunestation.data.tokenizers import load_tokenizer, set_template, train_tokenizer
from tunestation.errors import InputError
from tunestation.models.native import chatglm
from tunestation.models.native.vocabularies import write_tokenizer

TEXTS = ["system\nuser\nassistant\nHello, how are you? I am fine.\n\n", "你好，我是一个助手。", "12 + 30 = 42"]
LLAMA_LIKE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('no system text') }}{% endif %}{% endfor %}"
)
FORGETFUL = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make(template: str = "chatml", bos: str | None = None):
    tokenizer = train_tokenizer(TEXTS * 3, 400)
    tokenizer.bos_token = bos
    set_template(tokenizer, template, None)
    return tokenizer


CHATML = make()
LETTERS = st.characters(exclude_categories=("Cs",), exclude_characters="\U000f0000\U000f0001") | st.sampled_from("你好我👋🏽é\n 12")
TEXT = (
    st.lists(LETTERS | st.sampled_from(("<|im_end|>", "<|im_start|>", "<|endoftext|>", "</s>", "<eoa>")), min_size=1, max_size=40)
    .map("".join)
    .filter(lambda text: text.strip())
)
"""Anything that can be written, control tokens spelled out included."""


def talk(*texts: str, system: str | None = None, silent: tuple[int, ...] = ()) -> list[Message]:
    """Questions and answers in turn."""
    first = [Message("system", system)] if system else []
    return first + [Message("assistant" if n % 2 else "user", text, n not in silent) for n, text in enumerate(texts)]


def spans(encoded) -> list[list[int]]:
    """The runs of labelled tokens."""
    found, inside = [], False
    for label in encoded.labels:
        if label != IGNORE:
            found = [*found[:-1], [*found[-1], label]] if inside else [*found, [label]]
        inside = label != IGNORE
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.none() | TEXT)
def test_the_labelled_tokens_are_exactly_the_answers_and_their_stop_tokens(pairs, system):
    encoded = encode(CHATML, talk(*[text for pair in pairs for text in pair], system=system))
    assert [CHATML.decode(span) for span in spans(encoded)] == [f"{answer}<|im_end|>" for _, answer in pairs]
    assert all(label in (IGNORE, token) for token, label in zip(encoded.input_ids, encoded.labels, strict=True))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.none() | TEXT)
def test_a_prompt_has_the_ids_that_stood_before_the_answer_in_training(pairs, system):
    messages = talk(*[text for pair in pairs for text in pair], system=system)
    encoded, prompt = encode(CHATML, messages), encode_prompt(CHATML, messages[:-1])
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels[len(prompt)] != IGNORE
    assert encoded.labels[len(prompt) - 1] == IGNORE


def test_the_newline_after_the_stop_token_is_kept_but_not_learned():
    encoded = encode(CHATML, talk("Hi", "Yo"))
    assert CHATML.decode(encoded.input_ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    assert (CHATML.decode(encoded.input_ids[-1:]), encoded.labels[-1]) == ("\n", IGNORE)


def test_an_answer_without_loss_is_context_with_the_same_ids():
    trained, context = encode(CHATML, talk("a", "b", "c", "d")), encode(CHATML, talk("a", "b", "c", "d", silent=(1,)))
    assert trained.input_ids == context.input_ids
    assert [CHATML.decode(span) for span in spans(context)] == ["d<|im_end|>"]


def test_many_conversations_in_one_call_get_the_ids_of_each_alone():
    talks = [talk("a", "b"), talk("Hello, how", "你好", "12", "30", system="S")]
    encoder = Encoder(CHATML)
    assert encoder.encode([encoder.pieces(one) for one in talks]) == [encode(CHATML, one) for one in talks]


def test_the_built_in_templates_write_xtuners_strings():
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    turns = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    assert CHATML.apply_chat_template(messages, tokenize=False) == turns
    internlm = make("internlm2_chat", bos="<|endoftext|>")
    assert internlm.apply_chat_template(messages, tokenize=False) == f"<|endoftext|>{turns}"
    prompt = internlm.apply_chat_template(messages[1:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|endoftext|><|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"


def test_a_document_for_chatglm_begins_with_the_two_tokens_that_its_tokenizer_puts_before_every_text(tmp_path):
    processor = train_sentencepiece(tmp_path, add_dummy_prefix=True)
    write_tokenizer(chatglm.FAMILY, tmp_path, {}, None, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    (encoded,) = Encoder(tokenizer).encode([Encoder(tokenizer).document("What is 1 and 1?")])
    pieces = processor.vocab_size()
    text = processor.encode("What is 1 and 1?")
    assert encoded.input_ids == [pieces + 1, pieces + 3, *text, processor.eos_id()]  # [gMASK] and sop, as in the original's tokenizer
    assert encoded.labels == [IGNORE, IGNORE, *text, processor.eos_id()]


def test_a_document_of_a_tokenizer_that_puts_nothing_before_a_text_begins_with_the_text():
    tokenizer = make()
    (encoded,) = Encoder(tokenizer).encode([Encoder(tokenizer).document("What?")])
    assert encoded.input_ids == encoded.labels == tokenizer("What?<|im_end|>").input_ids


def test_internlm2_chat_begins_with_one_bos_token():
    tokenizer = make("internlm2_chat", bos="<|endoftext|>")
    ids = encode(tokenizer, talk("a", "b", "c", "d")).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_template_of_another_shape_is_cut_at_its_own_stop_token():
    tokenizer = make(bos="<|endoftext|>")
    tokenizer.chat_template = LLAMA_LIKE
    encoded = encode(tokenizer, talk("a", "b", "c", "d"))
    assert [tokenizer.decode(span) for span in spans(encoded)] == [" b<|im_end|>", " d<|im_end|>"]


def test_a_template_that_rewrites_earlier_turns_is_refused():
    tokenizer = make()
    tokenizer.chat_template = FORGETFUL
    assert len(spans(encode(tokenizer, talk("a", "b")))) == 1
    with pytest.raises(InputError, match=r"the chat template \(the model's or your own\) writes an earlier turn differently.*<think>"):
        encode(tokenizer, talk("a", "b", "c", "d"))


def test_a_template_that_never_writes_the_stop_token_is_refused():
    tokenizer = make()
    tokenizer.eos_token = "<|endoftext|>"
    with pytest.raises(InputError, match=r"chatml.*stop token '<\|endoftext\|>' is never trained"):
        encode(tokenizer, talk("a", "b"))


def test_a_template_that_raises_is_told_as_the_rows_problem():
    tokenizer = make(bos="<|endoftext|>")
    tokenizer.chat_template = LLAMA_LIKE
    with pytest.raises(InputError, match=r"^x.jsonl:3: .*refuses this conversation: no system text"):
        Encoder(tokenizer).pieces(talk("a", "b", system="S"), "x.jsonl:3")


def test_the_probe_agrees_with_what_other_programs_do_with_the_template():
    found = probe(CHATML)
    assert set(found) == {"en", "zh"}
    assert all(one["same_as_chat_template"] for one in found.values())
    assert all(one["input_ids"][: len(one["prompt_ids"])] == one["prompt_ids"] for one in found.values())
    assert found["en"]["sha256"] != found["zh"]["sha256"]


def test_auto_without_a_chat_template_lists_the_built_in_ones():
    tokenizer = train_tokenizer(TEXTS, 300)
    with pytest.raises(InputError, match=f"Name a built-in one: {', '.join(TEMPLATES)}"):
        set_template(tokenizer, "auto", None)


def test_auto_keeps_the_models_template_and_its_stop_token():
    tokenizer = make()
    tokenizer.chat_template, tokenizer.pad_token = FORGETFUL, None
    set_template(tokenizer, "auto", None)
    assert (tokenizer.chat_template, tokenizer.eos_token, tokenizer.pad_token) == (FORGETFUL, "<|im_end|>", "<|im_end|>")


def test_auto_takes_the_stop_token_from_the_generation_config_if_the_template_ends_with_that(tmp_path):
    tokenizer = make()
    tokenizer.eos_token = "<|endoftext|>"
    with pytest.raises(InputError, match="never trained"):
        set_template(tokenizer, "auto", tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    set_template(tokenizer, "auto", tmp_path)
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize(("name", "words"), [("chatmi", "Choose from: auto, chatml"), ("zephyr", "this tokenizer has none")])
def test_a_template_that_does_not_fit_is_refused(name, words):
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match=words):
        set_template(tokenizer, name, None)


def test_a_named_template_needs_its_stop_token_in_the_vocabulary():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")), unk_token="[UNK]"
    )
    with pytest.raises(InputError, match=r"<\|im_end\|>, which is not one token"):
        set_template(words, "chatml", None)


def test_a_trained_tokenizer_splits_digits_and_gives_back_every_text():
    tokenizer = train_tokenizer(TEXTS * 3, 400)
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert [tokenizer.decode(token) for token in tokenizer("2024").input_ids] == ["2", "0", "2", "4"]
    assert tokenizer.decode(tokenizer("n't , ä 职场 👋").input_ids) == "n't , ä 职场 👋"
    assert len(tokenizer) <= 400


def test_equal_texts_train_equal_tokenizers():
    assert train_tokenizer(TEXTS, 350).backend_tokenizer.to_str() == train_tokenizer(TEXTS, 350).backend_tokenizer.to_str()


def test_a_saved_tokenizer_is_loaded_with_its_template(tmp_path):
    CHATML.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path, "models:x")
    assert encode(loaded, talk("Hi", "Yo")) == encode(CHATML, talk("Hi", "Yo"))
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_a_model_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(InputError, match=r"models:x: the model folder has no tokenizer: none of tokenizer\.json"):
        load_tokenizer(tmp_path, "models:x")


def test_a_damaged_tokenizer_is_one_problem(tmp_path):
    CHATML.save_pretrained(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(whole[:500], encoding="utf-8")
    with pytest.raises(InputError, match="models:x: the tokenizer cannot be read"):
        load_tokenizer(tmp_path, "models:x")
