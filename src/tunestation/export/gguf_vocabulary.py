"""A tokenizer.json in llama.cpp's terms. llama.cpp knows two kinds of BPE, and of each only fixed ways to prepare the text.

Byte-level BPE cuts text into words by a pattern with a name; SentencePiece's joins neighbours by the score of what they make.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
WORDS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
}
"""How a tokenizer cuts text into words -> llama.cpp's name for it."""
DIGITS = {"type": "Digits", "individual_digits": True}
HAN = {"type": "Split", "pattern": {"Regex": r"\p{Han}"}, "behavior": "Isolated", "invert": False}
SPACE = "▁"
TO_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREFIX = {"type": "Prepend", "prepend": SPACE}
SCHEMES = {"always": True, "never": False, "first": False}
"""`first` is as `never` wherever a text begins with a special token: see `begins_with_text`."""
CHARACTERS = re.compile(rb"[\x80-\xbf]+|[\x00-\x7f\xc0-\xff][\x80-\xbf]*")
"""Whole characters in UTF-8, and parts of some at the ends."""


@dataclass(frozen=True)
class Way:
    """How llama.cpp has to read a vocabulary."""

    model: str
    """`gpt2`: byte-level BPE; `llama`: SentencePiece's."""
    pre: str
    """llama.cpp's name for how text is cut into words."""
    space_prefix: bool = False
    """Whether a space is put in front of a text, and after every special token."""


def way_of(tokenizer: dict) -> Way:
    """How to read the content of a tokenizer.json. Raises ValueError with the reason where llama.cpp would find other tokens."""
    if tokenizer["model"]["type"] != "BPE":
        raise ValueError(f"its vocabulary is of type {tokenizer['model']['type']}, and BPE alone is written")
    for token in tokenizer.get("added_tokens", []):
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            raise ValueError(f"its token {token['content']} takes spaces around it away")
    return _sentencepiece(tokenizer) if tokenizer["model"].get("byte_fallback") else Way("gpt2", _byte_level(tokenizer))


def _byte_level(tokenizer: dict) -> str:
    found = tokenizer["pre_tokenizer"] or {}
    parts = found.get("pretokenizers", [])
    kinds = [part["type"] for part in parts]
    if tokenizer["normalizer"] in (None, {"type": "NFC"}):
        if found == GPT2:
            return "gpt-2"
        if parts == [DIGITS, GPT2] or (parts == [HAN, DIGITS, GPT2] and not _joins_characters(tokenizer["model"])):
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and (name := WORDS.get(parts[0]["pattern"].get("Regex"))):
            return name
    raise ValueError("llama.cpp cuts text into words in fixed ways, and this tokenizer's is none of those that are known here")


def _joins_characters(model: dict) -> bool:
    """Whether a token reaches beyond a Chinese character, or joins spaces: whether it matters that text is cut around those."""
    from tokenizers import Regex, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    to_byte = {char: byte for byte, char in bytes_to_unicode().items()}
    cut = pre_tokenizers.Split(Regex(HAN["pattern"]["Regex"]), "isolated")
    tokens = (bytes(to_byte[char] for char in "".join(_pair(merge))) for merge in model["merges"])
    return any(_reaches_beyond(token, cut) for token in tokens if len(CHARACTERS.findall(token)) > 1)


def _reaches_beyond(token: bytes, cut: PreTokenizer) -> bool:
    try:
        return token.isspace() or len(cut.pre_tokenize_str(token.decode())) > 1
    except UnicodeDecodeError:
        return True  # a part of a character beside another one


def _sentencepiece(tokenizer: dict) -> Way:
    missing = [number for number in range(256) if f"<0x{number:02X}>" not in tokenizer["model"]["vocab"]]
    if missing:
        raise ValueError(f"it has no token for {len(missing)} of the 256 bytes")
    vocabulary, made = tokenizer["model"]["vocab"], scores(tokenizer["model"])
    known = {*made, *(token["content"] for token in tokenizer["added_tokens"])}
    for text in vocabulary.keys() - known:
        if any(text[:cut] in vocabulary and text[cut:] in vocabulary for cut in range(1, len(text))):
            raise ValueError(f"it never makes {text}, which llama.cpp would")
    return Way("llama", "default", _space_prefix(tokenizer))


def _space_prefix(tokenizer: dict) -> bool:
    normalizer, cut = tokenizer["normalizer"], tokenizer["pre_tokenizer"]
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer] if normalizer else []
    if not cut and steps in ([TO_SPACE], [PREFIX, TO_SPACE]):
        if PREFIX in steps and any(token["normalized"] for token in tokenizer["added_tokens"]):
            raise ValueError("it puts a space in front of special tokens too")
        return PREFIX in steps
    if not steps and cut and cut["type"] == "Metaspace" and cut["replacement"] == SPACE and not cut["split"]:
        return SCHEMES[cut["prepend_scheme"]]
    raise ValueError("it changes text before it looks for tokens, by more than writing spaces as ▁")


def begins_with_text(tokenizer: dict, rendered: str) -> bool:
    """Whether a rendered conversation gets a space in front that llama.cpp would not put there."""
    cut = tokenizer["pre_tokenizer"] or {}
    added = tuple(token["content"] for token in tokenizer["added_tokens"])
    return cut.get("prepend_scheme") == "first" and not rendered.startswith(added)


def scores(model: dict) -> dict[str, float]:
    """Token -> score, higher for what is made earlier. Raises ValueError if no scores say what the merges say.

    All pairs that make one token have to follow each other: SentencePiece prefers a token, however it is made.
    """
    found, last = {}, None
    for left, right in map(_pair, model["merges"]):
        made = left + right
        if made != last and made in found:
            raise ValueError(f"its merges prefer some ways to make {made} to others")
        found.setdefault(made, -float(len(found)))
        last = made
    return found


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge
