"""One thread that owns the model: it lets questions in, draws a token for every answer, and survives what goes wrong.

transformers has continuous batching as well; it has one seed and one set of weights for all requests, and an error ends
them all. Here each answer has its own seed, the tuned and the untuned model share a base, and a failure stays with its answer.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence

import torch

from tunestation.chat.answers import Answer, Busy
from tunestation.chat.batch import Batch
from tunestation.chat.sampling import choose
from tunestation.errors import TunestationError

PREFILL = 4096
"""Padded tokens that are read at once, so that one long question among short ones does not fill the memory."""
Choose = Callable[[bool], None]
"""Called with `base`: from then on the model answers untuned, or tuned."""


class Scheduler:
    """Answers up to `parallel` conversations at a time; up to `waiting` more wait their turn."""

    def __init__(self, model: torch.nn.Module, stop: list[int], variant: Choose, parallel: int, waiting: int):
        self._stop, self._variant, self._parallel, self._limit = stop, variant, parallel, parallel + waiting
        self._batches = {base: Batch(model) for base in (False, True)}
        self._running: dict[bool, list[Answer]] = {False: [], True: []}
        self._admitted: list[Answer] = []
        """Those that the model looks at, from the moment on at which they wait no longer; ended ones may be among them."""
        self._waiting: deque[Answer] = deque()
        self._changed = threading.Condition()
        self.failure: str | None = None
        """What went wrong in the latest step of the model; None once one went well."""
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all answers and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def add(self, answer: Answer) -> None:
        """Queue an answer. Raises Busy when too many wait."""
        with self._changed:
            running, waiting = self.load()
            if running + waiting >= self._limit:
                raise Busy(f"{waiting} questions are waiting already.", remedy="Try again in a moment.")
            self._waiting.append(answer)
            self._changed.notify()

    def load(self) -> tuple[int, int]:
        """(answers being drawn, questions waiting)."""
        with self._changed:
            return sum(not answer.ended for answer in self._admitted), len(self._waiting)

    @torch.inference_mode()
    def _work(self) -> None:
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting or any(self._running.values()))
                new = self._admit()
            for base in (False, True):
                rows = [answer for answer in new if answer.base == base]
                if rows or self._running[base]:
                    self._variant(base)
                    self._round(base, rows)
        for answer in [*self._waiting, *self._running[False], *self._running[True]]:
            answer.end("cancelled")

    def _admit(self) -> list[Answer]:
        """The questions that are looked at next: in order, as many as have room and fit in one reading. Cancelled ones wait no longer."""
        for answer in [answer for answer in self._waiting if answer.cancelled]:
            self._waiting.remove(answer)
            answer.end("cancelled")
        new: list[Answer] = []
        width = 0
        while self._waiting and self.load()[0] + len(new) < self._parallel:
            width = max(width, len(self._waiting[0].ids))
            if new and width * (len(new) + 1) > PREFILL:
                break
            new.append(self._waiting.popleft())
        self._admitted = [answer for answer in self._admitted if not answer.ended] + new
        return new

    def _round(self, base: bool, new: Sequence[Answer]) -> None:
        """Read the new questions, and draw one token for every answer of this variant."""
        batch, running = self._batches[base], self._running[base]
        try:
            if running:
                self._take(running, batch.step([answer.ids[-1] for answer in running]))
            if new:
                for answer in new:
                    answer.begin()
                running += new
                self._take(new, batch.join([answer.ids for answer in new]))
            batch.keep([row for row, answer in enumerate(running) if not answer.ended])
            running[:] = [answer for answer in running if not answer.ended]
            self.failure = None
        except Exception as error:
            batch.keep([])
            self._recover(error, [answer for answer in [*running, *new] if not answer.ended])
            running.clear()
        if self.failure and torch.cuda.is_available():
            torch.cuda.empty_cache()  # not in the handler: while there is the error, so are the tensors of all functions it came through

    def _take(self, answers: Sequence[Answer], logits: torch.Tensor) -> None:
        tokens = choose(logits, [answer.sampler for answer in answers], [answer.ids for answer in answers])
        for answer, token in zip(answers, tokens, strict=True):
            if answer.cancelled:
                answer.end("cancelled")
            else:
                answer.take(token, self._stop)

    def _recover(self, error: Exception, answers: list[Answer]) -> None:
        """Out of memory ends the longest answer, and the others are read again; any other error ends them all."""
        answers = list(dict.fromkeys(answers))
        self.failure = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if not is_out_of_memory(error):
            traceback.print_exc(file=sys.stderr)
            for answer in answers:
                answer.end("failed", TunestationError(f"The model failed: {self.failure}"))
            return
        longest = max(answers, key=lambda answer: len(answer.ids))
        remedy = "Start a new conversation, or ask for a shorter answer."
        longest.end("failed", TunestationError(f"Memory ran out after {len(longest.ids):,} tokens.", remedy=remedy))
        with self._changed:
            self._admitted = [answer for answer in self._admitted if answer not in answers]
            self._waiting.extendleft(answer for answer in reversed(answers) if answer is not longest)


def is_out_of_memory(error: Exception) -> bool:
    """Whether `error` says that the GPU's or the machine's memory ran out."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
