"""From a vocabulary with an order to the merges of a BPE that prefers tokens in that order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Text = TypeVar("Text", str, bytes)


def merges(ordered: Iterable[Text]) -> list[tuple[Text, Text]]:
    """Every pair of tokens that makes a token, pairs of earlier tokens first.

    SentencePiece and tiktoken have no list of merges: they join whichever two neighbours make the best token, by score or
    rank. All the ways to make one token therefore share its place. Within it, the order of the halves decides.
    """
    place = {text: number for number, text in enumerate(ordered)}
    found = []
    for text in place:
        halves = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        pairs = [pair for pair in halves if pair[0] in place and pair[1] in place]
        found += sorted(pairs, key=lambda pair: (place[pair[0]], place[pair[1]]))
    return found
