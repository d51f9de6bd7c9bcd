"""Small vocabulary files in the formats of older families, learned from a few sentences."""

from __future__ import annotations

import base64
from itertools import pairwise
from pathlib import Path

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tiny import SENTENCES

UNUSED = tuple(f"[UNUSED_TOKEN_{number}]" for number in range(141, 147))
SYMBOLS = {"internlm": ("<eoh>", "<eoa>"), "internlm2": UNUSED, "baichuan": ("<reserved_102>", "<reserved_103>"), "chatglm": ()}


def train_sentencepiece(folder: Path, symbols: tuple[str, ...] = (), **options: object) -> SentencePieceProcessor:
    """tokenizer.model in `folder`: BPE with byte fallback, 400 pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    fixed = {"byte_fallback": True, "character_coverage": 0.98, "minloglevel": 2}
    chosen = {
        "model_type": "bpe",
        "vocab_size": 400,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
    } | options
    SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_prefix=str(folder / "tokenizer"), user_defined_symbols=list(symbols), **fixed, **chosen
    )
    (folder / "tokenizer.vocab").unlink()
    return SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def write_vocabulary(family: str, folder: Path) -> None:
    """The vocabulary file that the models of `family` ("baichuan2-7b") come with."""
    if family == "qwen":
        write_ranks(folder)
    else:
        kind = family.partition("-")[0].replace("baichuan2", "baichuan")
        train_sentencepiece(folder, SYMBOLS[kind], add_dummy_prefix=kind == "chatglm")


def write_ranks(folder: Path) -> dict[bytes, int]:
    """qwen.tiktoken in `folder`: the bytes, then the commonest neighbours of the sentences, joined again and again."""
    words = [[bytes([byte]) for byte in word.encode()] for sentence in SENTENCES for word in sentence.replace(" ", "\n ").split("\n")]
    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < 300:
        pairs = [pair for word in words for pair in pairwise(word)]
        left, right = max(sorted(set(pairs)), key=pairs.count)
        ranks[left + right] = len(ranks)
        words = [_joined(word, left, right) for word in words]
    folder.mkdir(parents=True, exist_ok=True)
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    (folder / "qwen.tiktoken").write_text("".join(lines))
    return ranks


def _joined(word: list[bytes], left: bytes, right: bytes) -> list[bytes]:
    found, place = [], 0
    while place < len(word):
        pair = word[place : place + 2] == [left, right]
        found.append(left + right if pair else word[place])
        place += 2 if pair else 1
    return found
