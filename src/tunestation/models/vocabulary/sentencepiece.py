"""A SentencePiece BPE model as a `tokenizers` pipeline that gives the same ids.

The file is a protocol buffer (sentencepiece_model.proto): field 1 repeats the pieces {1: text, 2: score, 3: type}, field 3
is how text is normalised. It is read here without the sentencepiece package, which a machine that only fine-tunes has no
other use for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunestation.errors import InputError
from tunestation.models.vocabulary.merges import merges

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "▁"
BPE = 2


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its place is its id."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class Model:
    """What a tokenizer.model says."""

    pieces: tuple[Piece, ...]
    charsmap: bytes
    """Compiled normalisation rules; empty for identity."""
    dummy_prefix: bool
    """Whether text begins with a space of its own."""
    squeeze: bool
    """Whether outer spaces go and inner runs of them become one."""

    def of_kind(self, kind: int) -> list[int]:
        """Ids of the pieces of a kind."""
        return [number for number, piece in enumerate(self.pieces) if piece.kind == kind]


def read_model(path: Path) -> Model:
    """The SentencePiece model in `path`. Raises InputError for anything but a BPE model with a piece for the unknown."""
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = tuple(_piece(value) for number, value in fields if number == 1)
        trainer, normalizer = (dict(_fields(next((v for n, v in fields if n == number), b""))) for number in (2, 3))
    except (ValueError, KeyError, IndexError, struct.error, AttributeError, TypeError):
        raise InputError("is not a SentencePiece model.", str(path), "Fetch it again.") from None
    if trainer.get(3, 1) != BPE or not pieces:
        raise InputError("is a SentencePiece model of another kind than BPE.", str(path), "Use a model with a tokenizer.json.")
    if not any(piece.kind == UNKNOWN for piece in pieces):
        raise InputError("has no piece for what it does not know, as every SentencePiece model has.", str(path), "Fetch it again.")
    return Model(pieces, normalizer.get(2, b""), bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)))


def tokenizer(model: Model, renamed: dict[str, str], control: set[str]) -> Tokenizer:
    """The pipeline that gives SentencePiece's ids. Pieces in `renamed` (old -> new) and in `control` become control tokens."""
    from tokenizers import AddedToken, Tokenizer, models

    texts = [renamed.get(piece.text, piece.text) for piece in model.pieces]
    for number in model.of_kind(USER_DEFINED):
        texts[number] = texts[number].replace(SPACE, " ")
    normal = {piece.text: piece.score for piece in model.pieces if piece.kind == NORMAL}
    unknown = model.of_kind(UNKNOWN)[0]
    made = Tokenizer(
        models.BPE(
            vocab={text: number for number, text in enumerate(texts)},
            merges=merges(sorted(normal, key=lambda text: -normal[text])),
            unk_token=texts[unknown],
            fuse_unk=True,
            byte_fallback=bool(model.of_kind(BYTE)),
        )
    )
    _set_spaces(made, model)
    named = {number for number, piece in enumerate(model.pieces) if piece.text in control or piece.text in renamed}
    special = {unknown, *model.of_kind(CONTROL), *named}
    made.add_special_tokens([AddedToken(texts[number], normalized=False, special=True) for number in sorted(special)])
    plain = [number for number in model.of_kind(USER_DEFINED) if number not in special]
    made.add_tokens([AddedToken(texts[number], normalized=False) for number in plain])
    return made


def _set_spaces(made: Tokenizer, model: Model) -> None:
    from tokenizers import Regex, decoders, normalizers

    before = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.squeeze:
        before += [normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.dummy_prefix:
        before.append(normalizers.Prepend(SPACE))
    made.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", SPACE)])
    after = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*after, *([decoders.Strip(" ", 1, 0)] if model.dummy_prefix else [])])


def _piece(content: bytes) -> Piece:
    fields = dict(_fields(content))
    return Piece(fields[1].decode("utf-8"), struct.unpack("<f", fields.get(2, bytes(4)))[0], fields.get(3, NORMAL))


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of the fields of a protocol buffer message; see protobuf.dev, "Encoding"."""
    place = 0
    while place < len(content):
        tag, place = _varint(content, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(content, place)
        else:
            size, place = _varint(content, place) if kind == 2 else ({1: 8, 5: 4}[kind], place)
            value, place = content[place : place + size], place + size
            if place > len(content):
                raise ValueError("cut")
        yield tag >> 3, value


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = content[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place
