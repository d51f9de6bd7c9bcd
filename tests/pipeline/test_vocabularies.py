"""Tokenizers of converted families give the ids of the programs they were made with."""

import json
import random
from pathlib import Path
from unicodedata import normalize

import pytest
import tiktoken
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from small_vocabularies import SYMBOLS, train_sentencepiece, write_ranks
from tiny import SENTENCES
from transformers import AutoTokenizer

from tunestation.errors import InputError
from tunestation.models.native import baichuan, chatglm, internlm, internlm2, qwen
from tunestation.models.native.vocabularies import build, write_tokenizer
from tunestation.models.vocabulary.sentencepiece import read_model
from tunestation.settings import PROJECT

DATA = PROJECT.parent / "shared/data"
REAL = DATA / "internlm2_tokenizer/tokenizer.model"
ODD = [
    "",
    " ",
    "  two  spaces   three ",
    "\n\n\tx = [1,\n\t\t2]\r\n",
    "1234567890 3.14e-10",
    "😀👩‍👩‍👧🇩🇪 emoji",
    "\ufeffbyte order\u200b\u3000mark",
    "ａｂｃ ﬁ e\u0301 é",
    "▁already▁",
    "def f(x):\n    return {'a': x**2}  # 注释\n",
    "لغة हिन्दी ไทย",
    "\x01\x7f\x80",
    "the <reserved_9> and [UNUSED_TOKEN_3]",
    "people of philosophy, a sop and an eop",
    "你好，世界！（测试）「引号」……",
]
LETTERS = "abc XYZ  \n\t0189.,{}你好世界的一是😀éß▁"


def texts(count: int) -> list[str]:
    """`count` texts of random letters, and the odd ones."""
    dice = random.Random(7)
    return ODD + SENTENCES + ["".join(dice.choices(LETTERS, k=dice.randrange(1, 60))) for _ in range(count)]


def differences(tokenizer, processor: SentencePieceProcessor, samples: list[str]) -> list[str]:
    return [text for text in samples if tokenizer.encode(text, add_special_tokens=False) != processor.encode(text)]


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """InternLM2's real tokenizer, converted."""
    if not REAL.is_file():
        pytest.skip("InternLM2's tokenizer.model is not beside the checkout (shared/data/internlm2_tokenizer)")
    folder = tmp_path_factory.mktemp("released")
    write_tokenizer(internlm2.FAMILY, REAL.parent, {}, None, folder)
    return folder


def test_internlm2_ids_are_those_of_sentencepiece_on_thousands_of_texts(released):
    tokenizer = AutoTokenizer.from_pretrained(released)
    rows = [json.loads(line)["text"] for line in (DATA / "c4_demo.jsonl").read_text().splitlines()]
    for name in ("alpaca_zh_demo.json", "alpaca_en_demo.json"):
        rows += [row[key] for row in json.loads((DATA / name).read_text()) for key in ("instruction", "output")]
    samples = rows + texts(1000)
    assert len(samples) > 5000
    assert differences(tokenizer, SentencePieceProcessor(model_file=str(REAL)), samples) == []


def test_internlm2_has_its_turn_tokens_at_their_ids_and_none_beyond_the_embedding(released):
    tokenizer = AutoTokenizer.from_pretrained(released)
    assert len(tokenizer) == 92544
    turns = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"]
    assert tokenizer.convert_tokens_to_ids(turns) == list(range(92538, 92544))
    assert tokenizer.encode("<|im_start|>user\n") == [1, 92543, *tokenizer.encode("user\n", add_special_tokens=False)]
    assert max(tokenizer.encode("[UNUSED_TOKEN_141] [UNUSED_TOKEN_146]")) < 92538
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "</s>")


FAMILIES = {
    "internlm": (internlm.FAMILY, {}, {}),
    "internlm2": (internlm2.FAMILY, {}, {}),
    "baichuan": (baichuan.FAMILIES[0], {"vocab_size": 64000}, {}),
    "chatglm": (chatglm.FAMILY, {}, {"add_dummy_prefix": True}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_small_vocabularies_give_the_ids_of_sentencepiece(tmp_path, name):
    family, config, options = FAMILIES[name]
    processor = train_sentencepiece(tmp_path, SYMBOLS[name], **options)
    write_tokenizer(family, tmp_path, config, None, tmp_path / "result")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "result")
    assert differences(tokenizer, processor, texts(3000)) == []
    assert tokenizer.decode(tokenizer.encode("Hi  你好\n", add_special_tokens=False)) == "Hi  你好\n"


@pytest.mark.parametrize("options", [{"remove_extra_whitespaces": True}, {"remove_extra_whitespaces": True, "add_dummy_prefix": True}])
def test_squeezed_spaces_are_squeezed_alike(tmp_path, options):
    processor = train_sentencepiece(tmp_path, **options)
    made = build(chatglm.FAMILY.vocabulary({}), tmp_path)
    wrong = [text for text in texts(500) if made.encode(text, add_special_tokens=False).ids != processor.encode(text)]
    assert wrong == []


def test_scores_decide_even_where_they_do_not_follow_the_ids(tmp_path):
    train_sentencepiece(tmp_path)
    model, dice = ModelProto.FromString((tmp_path / "tokenizer.model").read_bytes()), random.Random(1)
    normal = [piece for piece in model.pieces if piece.type == piece.NORMAL]
    scores = dice.sample([piece.score for piece in normal], len(normal))
    for piece, score in zip(normal, scores, strict=True):
        piece.score = score
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    made, processor = build(internlm.FAMILY.vocabulary({}), tmp_path), SentencePieceProcessor(model_proto=model.SerializeToString())
    wrong = [text for text in texts(3000) if made.encode(text, add_special_tokens=False).ids != processor.encode(text)]
    assert wrong == []


def test_user_defined_pieces_are_whole_and_turn_tokens_follow_the_file(tmp_path):
    processor = train_sentencepiece(tmp_path, ("<eoh>", "<eoa>", "[UNUSED_TOKEN_3]"))
    made = build(internlm.FAMILY.vocabulary({}), tmp_path)
    text = "Hi<eoh>\n[UNUSED_TOKEN_3]there<eoa>"
    assert made.encode(text, add_special_tokens=False).ids == processor.encode(text)
    glm = build(chatglm.FAMILY.vocabulary({}), tmp_path)
    assert glm.token_to_id("[MASK]") == processor.vocab_size() and glm.token_to_id("<|user|>") == processor.vocab_size() + 6
    assert glm.encode("x").tokens[:2] == ["[gMASK]", "<sop>"]


def test_qwen_ids_are_those_of_tiktoken(tmp_path):
    ranks = write_ranks(tmp_path)
    special = {text: len(ranks) + number for number, text in enumerate(qwen.SPECIAL)}
    encoding = tiktoken.Encoding("qwen", pat_str=qwen.PATTERN, mergeable_ranks=ranks, special_tokens=special)
    write_tokenizer(qwen.FAMILY, tmp_path, {}, None, tmp_path / "result")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "result")
    samples = [text for text in texts(3000) if text == normalize("NFC", text)]
    assert [text for text in samples if tokenizer.encode(text) != encoding.encode(text, disallowed_special=())] == []
    assert tokenizer.encode("e\u0301") == encoding.encode("é")
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == len(ranks) + 2 and len(tokenizer) == len(ranks) + 208


@pytest.mark.parametrize("content", [b"", b"\x0a\x05ab", b"not a model at all", b"\xff" * 40])
def test_a_damaged_sentencepiece_model_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match="SentencePiece model"):
        read_model(tmp_path / "tokenizer.model")


def test_a_model_without_a_piece_for_the_unknown_is_refused(tmp_path):
    train_sentencepiece(tmp_path)
    path = tmp_path / "tokenizer.model"
    model = ModelProto.FromString(path.read_bytes())
    for piece in model.pieces:
        if piece.type == ModelProto.SentencePiece.Type.UNKNOWN:
            piece.type = ModelProto.SentencePiece.Type.NORMAL
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"tokenizer\.model: has no piece for what it does not know"):
        write_tokenizer(internlm2.FAMILY, tmp_path, {}, None, tmp_path)


def test_transformers_4_knows_the_class_and_gives_no_token_types(tmp_path):
    train_sentencepiece(tmp_path, SYMBOLS["internlm2"])
    write_tokenizer(internlm2.FAMILY, tmp_path, {}, None, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]


def test_a_unigram_model_is_refused(tmp_path):
    train_sentencepiece(tmp_path, model_type="unigram", vocab_size=330)
    with pytest.raises(InputError, match="another kind than BPE"):
        read_model(tmp_path / "tokenizer.model")


@pytest.mark.parametrize("content", ["IQ== 0 1", "!! 0", "IQ== 5"])
def test_damaged_ranks_are_refused(tmp_path, content):
    (tmp_path / "qwen.tiktoken").write_text(content)
    with pytest.raises(InputError, match=r"qwen\.tiktoken"):
        build(qwen.FAMILY.vocabulary({}), tmp_path)


def test_a_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer\.model: is missing"):
        build(internlm2.FAMILY.vocabulary({}), tmp_path)
