"""What is asked of the engine, and what comes back while it answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tunestation.errors import TunestationError
from tunestation.recipe.schema import Generation

if TYPE_CHECKING:
    from tunestation.chat.sampling import Sampler
    from tunestation.chat.text import GrowingText


class Busy(TunestationError):
    """As many questions wait as may wait; nothing is wrong with this one. Exit code 1."""


@dataclass(frozen=True)
class Request:
    """A conversation to be answered."""

    messages: tuple[dict, ...]
    """`{"role", "content"}`, the last one a question."""
    generation: Generation
    seed: int | None = None
    """The same seed draws the same answer; None draws anew."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; none of them is part of it."""
    base: bool = False
    """Ask the untuned model."""


@dataclass(frozen=True)
class Ending:
    """How an answer ended, and what it cost."""

    reason: Literal["stop", "length", "cancelled", "failed"]
    """stop: the model (or a stop text) ended it; length: cut at its longest length or the end of the context."""
    prompt_tokens: int
    completion_tokens: int
    """Tokens drawn, the one that ended the answer included."""
    seconds: float
    """From the first look at the question to the last token; waiting does not count."""
    error: TunestationError | None = None

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.completion_tokens / self.seconds if self.seconds else 0.0


Sink = Callable[[str | Ending], None]
"""Gets every new piece of text and, last, the Ending. Called in the engine's thread: it must only hand over."""


class Answer:
    """One answer in the making. Its caller may `cancel` it; the rest is the scheduler's."""

    def __init__(self, prompt: list[int], limit: int, sampler: Sampler, text: GrowingText, sink: Sink, base: bool):
        self.ids = list(prompt)
        """The prompt and what was drawn so far: enough to begin again if the cache is lost."""
        self.base = base
        self.sampler = sampler
        self.cancelled = self.ended = False
        self._prompt_tokens, self._limit = len(prompt), limit
        self._text, self._sink = text, sink
        self._began: float | None = None

    def cancel(self) -> None:
        """End the answer at the next token; what was said stays."""
        self.cancelled = True

    def begin(self) -> None:
        """The model looks at the question now."""
        self._began = self._began or time.perf_counter()

    def take(self, token: int, stop: list[int]) -> None:
        """Append the token that was drawn, hand its text on, and end where it must."""
        self.ids.append(token)
        if token in stop:
            return self.end("stop")
        piece = self._text.add(token)
        if piece:
            self._sink(piece)
        if self._text.stopped:
            self.end("stop")
        elif len(self.ids) - self._prompt_tokens == self._limit:
            self.end("length")
        return None

    def end(self, reason: str, error: TunestationError | None = None) -> None:
        """Hand on what was held back, and the Ending."""
        piece = "" if self._text.stopped else self._text.rest()
        if piece:
            self._sink(piece)
        if self._text.stopped:
            reason = "stop"
        self.ended = True
        seconds = time.perf_counter() - self._began if self._began else 0.0
        self._sink(Ending(reason, self._prompt_tokens, len(self.ids) - self._prompt_tokens, seconds, error))
