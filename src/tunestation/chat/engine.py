"""A model, loaded once, that answers conversations: for the page, the API, the terminal and `ask` alike."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from pathlib import Path
from queue import SimpleQueue

from tunestation.chat.answers import Answer, Ending, Request, Sink
from tunestation.chat.generate import context_size, prompt_ids, stop_ids
from tunestation.chat.loading import load
from tunestation.chat.sampling import sampler
from tunestation.chat.scheduler import Scheduler
from tunestation.chat.text import GrowingText
from tunestation.chat.weights import Weights
from tunestation.errors import InputError
from tunestation.recipe.schema import Generation

PARALLEL, WAITING = 32, 128
"""Answers drawn together, and questions that may wait for one of these places."""


class TooLong(InputError):
    """The conversation leaves no room for an answer."""


class Engine:
    """A causal language model and its tokenizer."""

    def __init__(self, weights: Weights, parallel: int = PARALLEL, waiting: int = WAITING):
        """Load `weights`. Raises InputError as `load` does."""
        started = time.perf_counter()
        self.name = "/".join(Path(weights.model).parts[-2:])
        self.precision = weights.precision
        loaded = load(weights)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.stop = stop_ids(self.model, self.tokenizer)
        self.context = context_size(self.model, self.tokenizer)
        self.has_base = loaded.untuned is not None
        """Whether the untuned model can be asked as well."""
        self.scheduler = Scheduler(self.model, self.stop, loaded.untuned or (lambda base: None), parallel, waiting)
        self.seconds_to_load = time.perf_counter() - started
        self._size = loaded.size

    def summary(self) -> str:
        """One line for people: name, size, precision, device and the time it took to load."""
        size = self._size
        words = f"{size / 1e9:.1f} billion" if size >= 1e9 else f"{size / 1e6:.1f} million"
        dtype = str(self.model.dtype).removeprefix("torch.") if self.precision == "16bit" else self.precision
        device = {"cpu": "CPU", "cuda": "GPU"}.get(self.model.device.type, self.model.device.type)
        return f"Loaded in {self.seconds_to_load:.1f} s: {self.name}, {words} parameters, {dtype} on {device}"

    def fit(self, messages: Sequence[dict], max_new_tokens: int) -> tuple[list[dict], int]:
        """(messages, dropped turns): the oldest turns, a question and its answer each, go until an answer has room.

        The system text and the last question always stay; an answer claims at most half of the context.
        Raises TooLong when these two alone are too long.
        """
        room = self.context - min(max_new_tokens, self.context // 2)
        system, turns = _turns(messages)
        for dropped in range(len(turns)):
            kept = system + [message for turn in turns[dropped:] for message in turn]
            length = len(prompt_ids(self.tokenizer, kept))
            if length <= room:
                return kept, dropped
        raise TooLong(
            f"The message{' with the system text' if system else ''} is {length} tokens long; "
            f"{room} of the model's {self.context} are left beside the answer.",
            remedy="Shorten it, or ask for a shorter answer.",
        )

    def submit(self, request: Request, sink: Sink) -> Answer:
        """Begin an answer; `sink` gets its pieces and, last, its Ending. May be called in any thread.

        Raises TooLong when the conversation leaves no room for an answer, and Busy when too many wait.
        """
        prompt = prompt_ids(self.tokenizer, request.messages)
        room = self.context - len(prompt)
        if room < 1:
            raise TooLong(f"The conversation is {len(prompt)} tokens long; the model takes {self.context}.", remedy="Start a new one.")
        limit = min(request.generation.max_new_tokens, room)
        text = GrowingText(self.tokenizer, request.stop)
        answer = Answer(prompt, limit, sampler(request.generation, request.seed), text, sink, request.base)
        self.scheduler.add(answer)
        return answer

    def stream(self, request: Request) -> Generator[str, None, Ending]:
        """The pieces of one answer; returns its Ending, also a failed one. A caller that stops iterating cancels it."""
        events: SimpleQueue[str | Ending] = SimpleQueue()
        answer = self.submit(request, events.put)
        try:
            while isinstance(event := events.get(), str):
                yield event
            return event
        finally:
            answer.cancel()

    def answer(self, messages: Sequence[dict], generation: Generation, seed: int | None = None) -> str:
        """The whole answer. Raises what made it fail."""
        pieces = []
        stream = self.stream(Request(tuple(messages), generation, seed))
        while True:
            try:
                pieces.append(next(stream))
            except StopIteration as end:
                if end.value.error:
                    raise end.value.error from None
                return "".join(pieces)

    def close(self) -> None:
        """End all answers."""
        self.scheduler.close()


def _turns(messages: Sequence[dict]) -> tuple[list[dict], list[list[dict]]]:
    """The system messages, and the others cut before each user message."""
    system = [message for message in messages if message["role"] == "system"]
    turns: list[list[dict]] = []
    for message in messages[len(system) :]:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return system, turns
