"""What the page does when something on it is used. Each handler returns or yields what changes, by component."""

from __future__ import annotations

import asyncio
import html
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from copy import deepcopy
from dataclasses import dataclass, field

import gradio as gr

from tunestation.chat.answers import Busy, Ending, Request
from tunestation.chat.engine import Engine
from tunestation.chat.parts import Context, Parts, new_browser
from tunestation.chat.streams import Asked, asking
from tunestation.chat.talks import MOST, Shelf, Talk, Turn, Votes, Who, to_jsonl
from tunestation.chat.words import WORDS, preferred
from tunestation.errors import TunestationError

Changes = dict
"""Component -> its new value or properties."""


@dataclass
class Window:
    """A window of a browser for which an answer is being drawn."""

    asked: Asked | None = None
    told: bool = False
    """Whether its last words are on their way: the browser may ask again as soon as it has them, and so before this has ended."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    turned_to: Callable[[], Changes] | None = None
    """Shows what the person wants to see instead of the answer."""

    def turn(self, show: Callable[[], Changes]) -> None:
        """End the answer, also before its next token, and let `show` be its last word."""
        self.turned_to = show
        if self.asked:
            self.asked.wake()


class Handlers:
    """The page's behaviour; `parts` are set once they are laid out."""

    parts: Parts

    def __init__(self, engine: Engine, system: str, shelf: Shelf, votes: Votes):
        self._engine, self._system, self._shelf, self._votes = engine, system, shelf, votes
        self._windows: dict[str, Window] = {}

    # what a person does

    async def ask(self, request: gr.Request, message: str, *values: object) -> AsyncIterator[Changes]:
        """A new question."""
        at = Context.of(values)
        if not message.strip():
            gr.Warning(at.words["empty"])
            yield {self.parts.box: ""}
            return
        async for changes in self._answer(request, at, [*at.talk.turns, Turn(message)]):
            yield changes

    async def retry(self, request: gr.Request, *values: object) -> AsyncIterator[Changes]:
        """The last question again."""
        at = Context.of(values)
        async for changes in self._answer(request, at, at.talk.turns):
            yield changes

    async def example(self, request: gr.Request, chosen: gr.SelectData, *values: object) -> AsyncIterator[Changes]:
        """A question of the recipe."""
        async for changes in self.ask(request, chosen.value["text"], *values):
            yield changes

    async def edit(self, request: gr.Request, edited: gr.EditData, *values: object) -> AsyncIterator[Changes]:
        """A changed question is asked again, and what came after it goes; a changed answer stands, as training data."""
        at = Context.of(values)
        turn, is_answer = divmod(edited.index, 2)
        if is_answer:
            at.talk.turns[turn].tuned = edited.value
            self._shelf.save(at.kept["browser"], at.talk)
            yield self._shown(at) | {self.parts.talk: at.talk}
            return
        async for changes in self._answer(request, at, [*at.talk.turns[:turn], Turn(edited.value)]):
            yield changes

    def stop(self, request: gr.Request) -> None:
        """End the answers of this window; what was said stays."""
        window = self._windows.get(request.session_hash)
        if window and window.asked:
            window.asked.cancel()

    async def clear(self, request: gr.Request, *values: object) -> Changes:
        """Forget this conversation."""
        at = Context.of(values)

        def cleared() -> Changes:
            at.talk.turns.clear()
            self._shelf.save(at.kept["browser"], at.talk)
            return self._anew(at)

        return self._turn(request, cleared)

    async def new(self, request: gr.Request, *values: object) -> Changes:
        """Begin another conversation; this one stays in the list."""
        at = Context.of(values)
        return self._turn(request, lambda: self._anew(at))

    async def open(self, request: gr.Request, chosen: str | None, *values: object) -> Changes:
        """Show a conversation of the list."""
        at = Context.of(values)
        return self._turn(request, lambda: self._opened(at._replace(talk=self._shelf.get(at.kept["browser"], chosen or ""))))

    def vote(self, better: str, *values: object) -> Changes:
        """Keep which of two answers is better."""
        at = Context.of(values)
        if not at.talk.undecided:  # a second click, or one after the next question
            return gr.skip()
        at.talk.turns[-1].better = better
        self._votes.add(at.talk, len(at.talk.turns) - 1)
        self._shelf.save(at.kept["browser"], at.talk)
        return {self.parts.talk: at.talk, self.parts.votes: gr.Row(visible=False), self.parts.count: self._tally(at.words)}

    def export(self, *values: object) -> Changes:
        """All conversations of this browser as rows of training data."""
        at = Context.of(values)
        rows = to_jsonl(self._shelf.all(at.kept["browser"]))
        if not rows:
            gr.Warning(at.words["nothing"])
        return {self.parts.rows: rows}

    def switch(self, *values: object) -> Changes:
        """One column or two."""
        at = Context.of(values)
        return {self.parts.base_column: gr.Column(visible=at.compare), **self._shown(at)}

    def greet(self, request: gr.Request) -> Changes:
        """A window was opened: the page speaks the language of its browser."""
        language = preferred(request.headers.get("accept-language", ""))
        if language == "en":  # as it is laid out: what is not told again cannot overtake what a person does first
            return {self.parts.language: language, self.parts.count: self._tally(WORDS[language])}
        return self.translate(language) | {self.parts.language: language}

    def load(self, kept: dict | None, compare: bool, language: str) -> Changes:
        """Show the conversation that this browser saw last. Until then the box is closed; no setting changes by itself after it."""
        kept = kept or new_browser()
        talk = self._shelf.get(kept["browser"], kept["talk"])
        if not talk.turns:
            talk.system = self._system
        return self._opened(Context(talk, kept, compare, language, talk.system, ()))

    def translate(self, language: str) -> Changes:
        """Every text of the page in `language`."""
        words = WORDS[language]
        return self.parts.translated(words) | {self.parts.count: self._tally(words)}

    # what comes of it

    def _turn(self, request: gr.Request, show: Callable[[], Changes]) -> Changes:
        """Show something else: at once, or as the last word of the answer that is being drawn, so that nothing of it can come later."""
        window = self._windows.get(request.session_hash)
        if not window:
            return show()
        window.turn(show)
        return gr.skip()

    async def _answer(self, request: gr.Request, at: Context, turns: list[Turn]) -> AsyncIterator[Changes]:
        """Answer the last of `turns`, which the conversation consists of from now on; one at a time in a window."""
        while busy := self._windows.get(request.session_hash):
            if not busy.told:
                yield gr.skip()
                return
            await busy.ended.wait()
        window = self._windows[request.session_hash] = Window()
        before, at.talk.turns[:] = deepcopy(at.talk.turns), turns
        try:
            async for changes in self._answered(window, at, before):
                yield changes
            if window.turned_to:
                yield window.turned_to()
        finally:
            del self._windows[request.session_hash]
            window.ended.set()

    async def _answered(self, window: Window, at: Context, before: list[Turn]) -> AsyncIterator[Changes]:
        """With no answer at all the conversation is as it was `before`, so that no answer is lost to one that did not come."""
        turn, trouble = at.talk.turns[-1], ""
        asked_before = [known.question for known in before[: len(at.talk.turns)]] == [known.question for known in at.talk.turns]
        turn.tuned = turn.base = turn.better = ""
        at.talk.system = at.system
        try:
            async for changes in self._growing(window, at):
                yield changes
        except Busy:
            trouble = at.words["busy"]
        except TunestationError as error:
            trouble = f"{at.words['failed']} {error}"
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            trouble = f"{at.words['failed']} {type(error).__name__}: {error}"
        finally:
            answered = bool(turn.answer("tuned"))
            if not answered:
                at.talk.turns[:] = before
            self._shelf.save(at.kept["browser"], at.talk)
        if trouble:
            # Not gr.Error, which covers the conversation with the word "Error".
            gr.Warning(html.escape(trouble), duration=None)
        window.told = True
        yield self._done(at, "" if answered or asked_before else turn.question)

    async def _growing(self, window: Window, at: Context) -> AsyncIterator[Changes]:
        turn, parts = at.talk.turns[-1], self.parts
        requests, notes = await asyncio.to_thread(self._requests, at)
        async with asking(self._engine, requests) as asked:
            window.asked = asked
            if window.turned_to:  # while the question was tokenised: nothing has woken this one
                return
            others = self._engine.scheduler.load()[1] - len(requests)
            status = at.words["waiting"].format(count=others) if others > 0 else ""
            yield self._busy(at) | {parts.status[who]: status for who in requests}
            endings: dict[Who, Ending] = {}
            while len(endings) < len(requests):
                events, changed = await asked.some(), set()
                if window.turned_to:
                    return
                for who, event in events:
                    changed.add(who)
                    if isinstance(event, Ending):
                        endings[who] = event
                    else:
                        setattr(turn, who, getattr(turn, who) + event)
                shown = {parts.chats[who]: _messages(at, who) for who in changed}
                yield shown | {parts.status[who]: _status(endings[who], notes[who], at.words) for who in changed & endings.keys()}
        failed = next((ending.error for ending in endings.values() if ending.error), None)
        if failed:
            raise failed

    def _requests(self, at: Context) -> tuple[dict[Who, Request], dict[Who, str]]:
        """What each of the asked models is asked, and what is to be said about it."""
        requests, notes = {}, {}
        for who in ("tuned", "base") if at.compare else ("tuned",):
            messages = [*at.talk.messages(who, len(at.talk.turns) - 1), {"role": "user", "content": at.talk.turns[-1].question}]
            kept, dropped = self._engine.fit(messages, at.generation().max_new_tokens)
            requests[who] = Request(tuple(kept), at.generation(), base=who == "base")
            notes[who] = at.words["trimmed"].format(count=dropped) if dropped else ""
        return requests, notes

    # what is shown

    def _busy(self, at: Context) -> Changes:
        box = gr.Textbox("", interactive=False, submit_btn=False, stop_btn=True)
        return self._shown(at) | {self.parts.box: box, self.parts.votes: gr.Row(visible=False)}

    def _done(self, at: Context, message: str) -> Changes:
        """The box takes the next message; one that was not answered, and stands nowhere else, is back in it."""
        kept = at.kept | {"talk": at.talk.id}
        box = gr.Textbox(message, interactive=True, submit_btn=True, stop_btn=False)
        return {**self._shown(at), self.parts.box: box, self.parts.talk: at.talk, self.parts.kept: kept, self.parts.talks: self._list(kept)}

    def _opened(self, at: Context) -> Changes:
        cleared = dict.fromkeys(self.parts.status.values(), "")
        return {**self._done(at, ""), **cleared, self.parts.settings["system"]: at.talk.system}

    def _anew(self, at: Context) -> Changes:
        return self._opened(at._replace(talk=Talk(system=self._system)))

    def _shown(self, at: Context) -> Changes:
        votes = gr.Row(visible=at.compare and at.talk.undecided)
        return {chat: _messages(at, who) for who, chat in self.parts.chats.items()} | {self.parts.votes: votes}

    def _list(self, kept: dict) -> gr.Radio:
        choices = [(talk.title, talk.id) for talk in self._shelf.all(kept["browser"])[:MOST]]
        current = kept["talk"] if any(kept["talk"] == known for _, known in choices) else None
        return gr.Radio(choices=choices, value=current)

    def _tally(self, words: dict) -> gr.HTML:
        count = self._votes.count()
        return gr.HTML(words["votes"].format(**count), visible=any(count.values()))


def _messages(at: Context, who: Who) -> list[dict]:
    """Two entries a turn, so that the place of an entry names its turn."""
    found = []
    for turn in at.talk.turns:
        pending = "…" if turn is at.talk.turns[-1] else f"*{at.words['no_answer']}*"
        answer = (turn.tuned, turn.base)[who == "base"] or pending
        found += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": answer}]
    return found


def _status(ending: Ending, note: str, words: dict) -> str:
    speed = words["speed"].format(tokens=ending.completion_tokens, speed=ending.speed) if ending.completion_tokens else ""
    told = [speed, words.get(ending.reason, ""), note]
    return html.escape(" · ".join(text for text in told if text))
