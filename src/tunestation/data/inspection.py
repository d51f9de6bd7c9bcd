"""A prepared data set to look at: numbers over all rows, and single rows with what is learned of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunestation.data.control import BEGIN, END
from tunestation.data.conversations import Conversation
from tunestation.data.corpus import Outcome
from tunestation.data.encoding import Encoder
from tunestation.data.ledger import read_ledger

State = Literal["context", "learned", "lost"]
"""lost: cut off, as it lies beyond max_tokens."""
MARKERS = re.compile(f"[{BEGIN}{END}]")


@dataclass(frozen=True)
class Token:
    """One token of a row."""

    id: int
    text: str
    """Its text, or the vocabulary's spelling."""
    state: State


@dataclass(frozen=True)
class RowView:
    """One row: its line of the ledger, and its text in the order of the model's input."""

    number: int
    """Counted from 1 over all sources, in their order."""
    line: dict
    """What the ledger says."""
    segments: tuple[tuple[str, State], ...] = ()
    """Text and state; empty for a row that is not learned."""
    tokens: tuple[Token, ...] = ()


class Inspector:
    """Looks at what a recipe's rows became, with the tokenizer that `prepare` wrote."""

    def __init__(self, ledger: Path, encoder: Encoder, max_tokens: int):
        self.ledger = ledger
        self.encoder = encoder
        self.max_tokens = max_tokens
        self.bytes = type(encoder.backend.decoder).__name__ == "ByteLevel"

    def lines(self) -> Iterator[dict]:
        """The ledger, row by row."""
        return read_ledger(self.ledger)

    def views(self, outcomes: Iterable[Outcome], wanted: set[int]) -> Iterator[RowView]:
        """The rows with these numbers, in order; `outcomes` are all rows of the recipe's sources, as `prepare` read them."""
        last = max(wanted, default=0)
        for number, (line, outcome) in enumerate(zip(self.lines(), outcomes, strict=False), start=1):
            if number in wanted:
                yield self._view(number, line, outcome)
            if number >= last:
                return

    def _view(self, number: int, line: dict, outcome: Outcome) -> RowView:
        if not isinstance(outcome, Conversation) or line["fate"] == "dropped":
            return RowView(number, line)
        document = outcome.text is not None
        pieces = self.encoder.document(outcome.text) if document else self.encoder.pieces(outcome.messages, outcome.where, outcome.tools)
        room = len(self.encoder.encode([pieces])[0].input_ids) if document else self.max_tokens
        segments: list[tuple[str, State]] = []
        tokens: list[Token] = []
        for piece in pieces:
            (encoded,) = self.encoder.encode([[piece]])
            state: State = "learned" if piece.trained else "context"
            kept, lost = encoded.input_ids[: max(room, 0)], encoded.input_ids[max(room, 0) :]
            text = MARKERS.sub("", piece.text) if piece.marked else piece.text
            segments += self._parts(text, kept, lost, state)
            tokens += [*self._tokens(kept, state), *self._tokens(lost, "lost")]
            room -= len(encoded.input_ids)
        return RowView(number, line, tuple(segments), tuple(tokens))

    def _parts(self, text: str, kept: Sequence[int], lost: Sequence[int], state: State) -> list[tuple[str, State]]:
        if not lost:
            return [(text, state)]
        if not kept:
            return [(text, "lost")]
        decode = self.encoder.tokenizer.decode
        return [(decode(kept), state), (decode(lost), "lost")]

    def _tokens(self, ids: Sequence[int], state: State) -> Iterator[Token]:
        return (Token(id, self._spelled(id), state) for id in ids)

    def _spelled(self, id: int) -> str:
        """A token as text; one that holds part of a character as the vocabulary has it."""
        if self.bytes and "\ufffd" not in (text := self.encoder.tokenizer.decode([id])):
            return text
        return self.encoder.tokenizer.convert_ids_to_tokens(id)


def pack_fills(folder: Path) -> list[int]:
    """Tokens of each pack of a data set that `prepare` wrote."""
    import datasets

    return datasets.load_from_disk(str(folder)).data["input_ids"].combine_chunks().value_lengths().to_pylist()


def histogram(values: Sequence[float], top: float, bins: int = 24) -> list[int]:
    """How many of `values` lie in each of `bins` equal parts of 0..top; what lies on a border counts below it."""
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, -int(-value * bins // top) - 1))] += 1
    return counts


def chosen(lines: Iterable[dict], count: int) -> set[int]:
    """At most `count` row numbers worth a look: the rows that did not go through as they are, and others evenly spread."""
    odd: list[int] = []
    total = 0
    for total, line in enumerate(lines, start=1):
        if (line["fate"] != "kept" or "repaired" in line or "same_as" in line) and len(odd) < count // 2:
            odd.append(total)
    step = max(1, -(-total // (count - len(odd))))
    return {*odd, *range(1, total + 1, step)}
