"""llama.cpp continues as transformers does, token by token: every way to cut text, every kind of positions, both kinds of numbers."""

import json

import pytest
import torch
from decided import TALKS, ids_of, make_decided
from small_vocabularies import train_sentencepiece
from test_gguf import llama, serve  # noqa: F401  the fixture
from tiny import CHATML, SENTENCES, make_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tunestation.errors import InputError
from tunestation.export.gguf_file import check, write
from tunestation.models.vocabulary.sentencepiece import read_model, tokenizer
from tunestation.pipeline.volumes import PACKAGE

TEXTS = [*SENTENCES, "a  b", " 12 345 ", "x你y 好\n\n我", "naïve 🙂 ₂", "it's  we'll\tgo", "<0x41> ▁ _"]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def wrap(made):
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    wrapped.chat_template = CHATML
    return wrapped


def sentencepiece(folder, scheme=None, prefix=False):
    """As its file says, or (`scheme`) as transformers 5 writes Llama's."""
    train_sentencepiece(folder, add_dummy_prefix=prefix)
    made = tokenizer(read_model(folder / "tokenizer.model"), {}, set())
    if scheme:
        made.normalizer, made.pre_tokenizer = None, pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return wrap(made)


def starter(_folder):
    """Cut as the starter's: Chinese characters and digits by themselves."""
    made = Tokenizer(models.BPE())
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cut = [pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated"), pre_tokenizers.Digits(True), letters]
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(cut), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=440, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    made.train_from_iterator(SENTENCES, trainer)
    return wrap(made)


KINDS = {
    "GPT-2's words, llama3's positions": ("llama", lambda folder: make_tokenizer(), LLAMA3),
    "SentencePiece with a space in front, linear positions": (
        "mistral",
        lambda folder: sentencepiece(folder, prefix=True),
        {"rope_type": "linear", "factor": 2.0},
    ),
    "SentencePiece as Llama's, yarn": ("llama", lambda folder: sentencepiece(folder, "first"), YARN),
    "SentencePiece without a space": ("qwen3", sentencepiece, None),
    "the starter's words, yarn": ("qwen2", starter, YARN),
}


@pytest.fixture(scope="module", params=KINDS)
def decided(request, tmp_path_factory):
    """(folder, tokenizer, model)."""
    folder = tmp_path_factory.mktemp("decided")
    kind, make, rope = KINDS[request.param]
    made = make(folder)
    options = {"rope_parameters": rope | {"rope_theta": 10000.0}} if rope else {}
    return folder, made, make_decided(folder / "model", made, kind, **options)


@torch.no_grad()
def continued(model, made, ids):
    """[(token, log-probability)] of the greedy continuation, with the stop token."""
    found = []
    while not found or (found[-1][0] != made.eos_token_id and len(found) < 60):
        logits = model(input_ids=torch.tensor([[*ids, *(token for token, _ in found)]]), use_cache=False).logits[0, -1]
        found.append((int(logits.argmax()), float(logits.log_softmax(-1).max())))
    return found


def shown(made, tokens):
    """Those of [(token, log-probability)] that llama.cpp reports: the ones that complete a character, without the stop token."""
    ids = [token for token, _ in tokens]
    whole = [not made.decode(ids[: place + 1]).endswith("\ufffd") for place in range(len(ids))]
    return [one for one, complete in zip(tokens, whole, strict=True) if complete and one[0] != made.eos_token_id]


@pytest.mark.parametrize(("number", "near"), [("f16", 0.02), ("q8_0", 0.3)])
def test_every_token_of_every_answer_is_the_same(llama, decided, number, near):  # noqa: F811
    folder, made, model = decided
    path = folder / f"{number}.gguf"
    write(folder / "model", path, number, "decided")
    server = serve(llama, path)
    asked = {"n_predict": 60, "temperature": 0, "special": True, "cache_prompt": False, "logprobs": 1}
    for question in TALKS:
        ids = ids_of(made, question)
        every = continued(model, made, ids)
        wanted, answer = shown(made, every), server.handle_completions({**asked, "prompt": ids})
        logprobs = answer["choices"][0]["logprobs"]["content"]
        found = [(token["id"], token["logprob"]) for token in logprobs if token["id"] != made.eos_token_id]
        assert [token for token, _ in found] == [token for token, _ in wanted], question
        assert answer["usage"]["completion_tokens"] == len(every), question
        assert max(abs(one - other) for (_, one), (_, other) in zip(found, wanted, strict=True)) < near, question
    for text in TEXTS:
        answer = server.handle_chat_completions({"messages": [{"role": "user", "content": text}], "max_tokens": 1})
        assert answer["usage"]["prompt_tokens"] == len(ids_of(made, text)), text


GOOD = {"model_type": "llama", "max_position_embeddings": 64}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
TOKENIZER = {"pre_tokenizer": BYTES, "normalizer": None, "model": {"type": "BPE"}, "added_tokens": []}


def told(config, content, rendered=""):
    with pytest.raises(InputError) as found:
        check(config, json.loads(json.dumps(content)), rendered)
    return [problem.what for problem in found.value.problems]


def test_all_that_keeps_a_model_from_being_written_is_told_before_anything_is_merged():
    check(GOOD, TOKENIZER, "")
    config = GOOD | {"model_type": "gemma3", "rope_parameters": {"rope_type": "longrope"}}
    assert [what.partition(",")[0] for what in told(config, TOKENIZER | {"normalizer": {"type": "Lowercase"}})] == [
        "export.gguf knows llama",
        "export.gguf cannot express the positions 'longrope' of this model.",
        "export.gguf cannot write this tokenizer: llama.cpp cuts text into words in fixed ways",
    ]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"rope_scaling": YARN | {"mscale": 0.7}}, "the option mscale of the positions 'yarn' of this model."),
        ({"model_type": "qwen2", "rope_scaling": LLAMA3}, "the positions 'llama3' in a model of type qwen2."),
    ],
)
def test_positions_that_llama_cpp_computes_otherwise_are_refused(config, reason):
    assert told(GOOD | config, TOKENIZER) == [f"export.gguf cannot express {reason}"]


def spoilt(plain):
    """Ways in which a SentencePiece tokenizer is more than llama.cpp does -> (content of tokenizer.json, reason)."""
    model, added = plain["model"], plain["added_tokens"]
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, plain["normalizer"]["normalizers"][-1]]}
    vocab = {text: number for text, number in model["vocab"].items() if text != "<0x0A>"}
    return {
        "kind": (plain | {"model": model | {"type": "Unigram"}}, "its vocabulary is of type Unigram"),
        "bytes": (plain | {"model": model | {"vocab": vocab}}, "it has no token for 1 of the 256 bytes"),
        "order": (plain | {"model": model | {"merges": [["a", "bc"], ["d", "e"], ["ab", "c"]]}}, "its merges prefer some ways to make abc"),
        "unmade": (plain | {"model": model | {"merges": model["merges"][1:]}}, "it never makes "),
        "spaces": (plain | {"added_tokens": [added[0] | {"rstrip": True}]}, f"its token {added[0]['content']} takes spaces"),
        "prefix": (plain | {"normalizer": prepend, "added_tokens": [added[0] | {"normalized": True}]}, "in front of special tokens too"),
        "more": (plain | {"normalizer": {"type": "NFKC"}}, "it changes text before it looks for tokens"),
    }


@pytest.mark.parametrize("what", ["kind", "bytes", "order", "unmade", "spaces", "prefix", "more"])
def test_a_sentencepiece_tokenizer_that_does_more_is_refused_with_the_reason(tmp_path, what):
    plain = json.loads(sentencepiece(tmp_path).backend_tokenizer.to_str())
    content, reason = spoilt(plain)[what]
    (found,) = told(GOOD, content)
    assert found.startswith("export.gguf cannot write this tokenizer: ") and reason in found


def test_a_space_that_only_transformers_puts_in_front_is_told(tmp_path):
    content = json.loads(sentencepiece(tmp_path, "first").backend_tokenizer.to_str())
    check(GOOD, content, "<|im_start|>user")
    assert told(GOOD, content, "User: hello") == ["export.gguf: llama.cpp would not put a space in front of this template's first word."]


def test_the_starter_itself_can_be_written():
    folder = PACKAGE / "starter" / "model"
    check(json.loads((folder / "config.json").read_text()), json.loads((folder / "tokenizer.json").read_text()), "")


def test_chinese_characters_that_tokens_reach_beyond_have_to_be_cut_as_trained():
    content = json.loads(starter(None).backend_tokenizer.to_str())
    check(GOOD, content, "")
    content["model"]["merges"].append(["Ġ", "ä½ł"])
    assert "cuts text into words in fixed ways" in told(GOOD, content)[0]


def test_without_the_package_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("tunestation.export.gguf_file.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"needs the package gguf\. Install it: pip install gguf"):
        check(GOOD, TOKENIZER, "")
