"""What the rows become: documents of token ids, each of which fits into a pack."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from random import Random

import numpy as np

from tunestation.data.conversations import Conversation, Dropped
from tunestation.data.encoding import Encoded, Encoder, Piece
from tunestation.data.ledger import Ledger
from tunestation.data.spool import Spool, packed
from tunestation.errors import InputError

Outcome = Conversation | Dropped
ROWS = 1000
CHARACTERS = 4_000_000
"""Rows and characters that are tokenised in one call."""


class Corpus:
    """All that will be learned. A conversation that is too long is cut, a text for pre-training is split."""

    def __init__(self, encoder: Encoder, max_tokens: int, spool: Spool, ledger: Ledger):
        self.encoder = encoder
        self.max_tokens = max_tokens
        self.spool = spool
        self.ledger = ledger
        self.counts: Counter[str] = Counter(longest=0, turns=0, repaired=0, duplicates=0, lost_tokens=0, stop_tokens=0, conversations=0)
        """Sums over all rows that are learned."""
        self._first = array("q", [0])
        self._copies = array("i")
        self._kind = array("i")
        """Of each row the number of its content: equal rows have the same."""
        self._kinds: dict[bytes, int] = {}
        self._first_line = array("i")
        """Line of the ledger in which a content was met first, from 1."""

    def read(self, outcomes: Iterable[Outcome]) -> None:
        """Tokenise everything; the ledger gets each row, in order."""
        for batch in _batches(outcomes):
            cuts = [self._cut(outcome) for outcome in batch]
            encoded = iter(self._encode([cut for cut in cuts if isinstance(cut, list)]))
            for outcome, cut in zip(batch, cuts, strict=True):
                self._enter(outcome, next(encoded) if isinstance(cut, list) else cut)
        self.spool.flush()

    def _cut(self, outcome: Outcome) -> list[Piece] | InputError | None:
        if isinstance(outcome, Dropped):
            return None
        try:
            if outcome.text is not None:
                return self.encoder.document(outcome.text)
            return self.encoder.pieces(outcome.messages, outcome.where, outcome.tools)
        except InputError as error:
            return error

    def _encode(self, cuts: Sequence[list[Piece]]) -> list[Encoded | InputError]:
        try:
            return self.encoder.encode(cuts)
        except InputError:  # one of them holds a control token that cannot be written as text
            return [self._alone(cut) for cut in cuts]

    def _alone(self, cut: list[Piece]) -> Encoded | InputError:
        try:
            return self.encoder.encode([cut])[0]
        except InputError as error:
            return error

    def _enter(self, outcome: Outcome, encoded: Encoded | InputError | None) -> None:
        if isinstance(outcome, Dropped):
            self.ledger.note(outcome.fate, outcome.where, outcome.reason)
        elif isinstance(encoded, InputError):
            self.ledger.note("dropped", outcome.where, " ".join(f"{problem.what} {problem.remedy}".strip() for problem in encoded.problems))
        else:
            self._keep(outcome, packed(encoded))

    def _keep(self, outcome: Conversation, tokens: np.ndarray) -> None:
        size, limit = len(tokens), self.max_tokens
        self.counts["longest"] = max(self.counts["longest"], size)
        whole = size <= limit or outcome.text is not None
        documents = [tokens[start : start + limit] for start in range(0, size, limit)] if whole else [tokens[:limit]]
        labelled = sum(int((document >= 0).sum()) for document in documents)
        if not labelled:
            why = f"nothing to learn within max_tokens: the question fills all {limit} tokens" if size > limit else "nothing to learn"
            self.ledger.note("dropped", outcome.where, why, tokens=size)
            return
        lost = 0 if whole else size - limit
        same_as = self._store(outcome, documents)
        self._count(outcome, documents, lost, bool(same_as))
        fate = "truncated" if lost else "split" if len(documents) > 1 else "kept"
        facts = {"tokens": size, "learned": labelled, "lost": lost, "documents": len(documents) if len(documents) > 1 else 0}
        facts |= {"turns": len(outcome.messages), "copies": outcome.copies if outcome.copies > 1 else 0}
        self.ledger.note(fate, outcome.where, **facts, repaired=outcome.repaired, same_as=same_as)

    def _store(self, outcome: Conversation, documents: Sequence[np.ndarray]) -> int:
        """Keep the documents of a row; returns the number of an earlier row that is the same in every token, or 0."""
        digest = blake2b(digest_size=16)
        for document in documents:
            self.spool.add(document)
            digest.update(document.tobytes())
        self._first.append(len(self.spool))
        self._copies.append(outcome.copies)
        kind = self._kinds.setdefault(digest.digest(), len(self._kinds))
        self._kind.append(kind)
        if kind < len(self._first_line):
            return self._first_line[kind]
        self._first_line.append(self.ledger.fates.total() + 1)
        return 0

    def _count(self, outcome: Conversation, documents: Sequence[np.ndarray], lost: int, duplicate: bool) -> None:
        stop = self.encoder.tokenizer.eos_token_id
        self.counts["stop_tokens"] += outcome.copies * sum(int((document == stop).sum()) for document in documents)
        self.counts["conversations"] += outcome.copies
        self.counts["turns"] += outcome.copies * len(outcome.messages)
        self.counts["repaired"] += bool(outcome.repaired)
        self.counts["duplicates"] += duplicate
        self.counts["lost_tokens"] += lost

    def split(self, fraction: float, seed: int) -> tuple[array[int], array[int]]:
        """(documents to train on, documents to hold out): round(fraction * n) of the n different rows, at least one unless fraction is 0.

        Rows with the same ids go the same way, else the held-out loss would be read on what was learned; all documents and
        copies of a row stay together. Raises InputError if nothing is left to train on.
        """
        different = len(self._kinds)
        count = max(1, round(fraction * different)) if fraction else 0
        if count == different:
            what = f"holding out {count} of {different} different conversations leaves nothing to train on."
            raise InputError(what, "evaluate.fraction", "Set it to 0, or add data.")
        chosen = set(Random(seed).sample(range(different), count))
        sides = (array("i"), array("i"))
        for row, kind in enumerate(self._kind):
            sides[kind in chosen].extend(array("i", range(self._first[row], self._first[row + 1])) * self._copies[row])
        return sides

    def forget(self) -> None:
        """Give back the memory that only reading needed."""
        self._kinds.clear()


def _batches(outcomes: Iterable[Outcome]) -> Iterator[list[Outcome]]:
    """Rows in groups that are large enough to be tokenised fast, and small enough for any memory."""
    batch: list[Outcome] = []
    characters = 0
    for outcome in outcomes:
        batch.append(outcome)
        characters += 0 if isinstance(outcome, Dropped) else _size(outcome)
        if len(batch) == ROWS or characters > CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _size(conversation: Conversation) -> int:
    return len(conversation.text or "") + sum(len(message.content) for message in conversation.messages)
