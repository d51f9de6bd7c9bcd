"""tiktoken ranks (lines of `base64 rank`) as a `tokenizers` pipeline that gives the same ids."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING

from tunestation.errors import InputError
from tunestation.models.vocabulary.merges import merges

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token -> rank, which is its id. Raises InputError if a line is not `base64 rank`, or a rank is missing."""
    try:
        lines = (line.split() for line in path.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except (ValueError, binascii.Error):
        raise InputError("is not a file of tiktoken ranks.", str(path), "Fetch it again.") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise InputError("does not hold each rank once.", str(path), "Fetch it again.")
    return ranks


def tokenizer(ranks: dict[bytes, int], pattern: str, special: list[str]) -> Tokenizer:
    """The byte-level pipeline: NFC, cut by `pattern`, then ranks; `special` tokens follow the ranks, in order."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    ordered = sorted(ranks, key=ranks.__getitem__)
    vocab = {_letters(token): rank for token, rank in ranks.items()}
    pairs = [(_letters(left), _letters(right)) for left, right in merges(ordered)]
    made = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=True))
    made.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return made


def _alphabet() -> list[str]:
    """The letter by which a byte-level vocabulary spells each byte (GPT-2: printable Latin-1 stands for itself)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


LETTERS = _alphabet()


def _letters(token: bytes) -> str:
    return "".join(LETTERS[byte] for byte in token)
