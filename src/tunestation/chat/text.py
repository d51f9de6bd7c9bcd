"""An answer's text as its tokens arrive: whole characters only, up to the first stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"
"""What incomplete bytes decode to."""


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of an answer's ids, without special tokens and otherwise as the model wrote it."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class GrowingText:
    """Turns ids into text piece by piece; all pieces together are `decode` of all ids, cut before the first of `stops`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()):
        self._tokenizer = tokenizer
        self._stops = stops
        self._ids: list[int] = []
        self._settled = 0
        self._told = 0
        self._held = ""
        self.stopped = False
        """Whether a stop text has ended the answer."""

    def add(self, token: int) -> str:
        """The text that `token` makes certain; empty while a character lacks bytes or a stop text may have begun."""
        self._ids.append(token)
        text = self._new()
        if text.endswith(BROKEN):
            return ""
        self._settled, self._told = self._told, len(self._ids)
        return self._until_stop(self._held + text)

    def rest(self) -> str:
        """What is still held back when no further token comes."""
        text = self._until_stop(self._held + self._new()) + self._held
        self._told, self._held = len(self._ids), ""
        return text

    def _new(self) -> str:
        # Some tokenizers write a token differently at the beginning of a text, so the last piece is decoded again with it.
        known = decode(self._tokenizer, self._ids[self._settled : self._told])
        return decode(self._tokenizer, self._ids[self._settled :])[len(known) :]

    def _until_stop(self, text: str) -> str:
        """The part of `text` before a stop text; its end is held back while it could be the beginning of one."""
        found = [at for at in map(text.find, self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        begun = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((size for size in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:size])), 0)
