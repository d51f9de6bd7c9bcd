"""Answers for code that runs in an event loop: the engine's thread hands over, the loop never waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tunestation.chat.answers import Answer, Ending, Request, Sink
from tunestation.chat.engine import Engine

Event = tuple[Any, str | Ending | None]
"""Which of the answers, and its next piece or its Ending; None only wakes who waits."""


@dataclass
class Asked:
    """Answers in the making."""

    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    """Their events, mixed, each answer's in order."""
    answers: list[Answer] = field(default_factory=list)
    cancelled: bool = False

    def add(self, answer: Answer) -> None:
        """Called in the thread that has tokenised the question: who asked may have left meanwhile."""
        self.answers.append(answer)
        if self.cancelled:
            answer.cancel()

    def cancel(self) -> None:
        """End all of them at the next token; their Endings still come."""
        self.cancelled = True
        for answer in self.answers:
            answer.cancel()

    def wake(self) -> None:
        """Let who waits for the next event look up. Called in the event loop."""
        self.events.put_nowait((None, None))

    async def some(self) -> list[Event]:
        """The next event and all that are there with it: a slow reader gets fewer, longer pieces."""
        events = [await self.events.get()]
        while not self.events.empty():
            events.append(self.events.get_nowait())
        return events


@asynccontextmanager
async def asking(engine: Engine, requests: Mapping[Any, Request]) -> AsyncIterator[Asked]:
    """Begin an answer to each of `requests`. Leaving the context cancels what is not ended. Raises as Engine.submit does."""
    loop, asked = asyncio.get_running_loop(), Asked()

    def begin(name: Any, request: Request) -> None:
        asked.add(engine.submit(request, _sink(loop, asked.events, name)))

    try:
        for name, request in requests.items():
            # Tokenising a long conversation takes a while: not in the loop.
            await asyncio.to_thread(begin, name, request)
        yield asked
    finally:
        asked.cancel()


def _sink(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], name: Any) -> Sink:
    def sink(event: str | Ending) -> None:
        if not loop.is_closed():  # the server may have ended before the model's last step
            loop.call_soon_threadsafe(events.put_nowait, (name, event))

    return sink
