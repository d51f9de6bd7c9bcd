"""`invoke chat --terminal`: a conversation without a browser."""

from __future__ import annotations

import readline
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from tunestation.chat.answers import Ending, Request
from tunestation.chat.engine import Engine
from tunestation.chat.main import ChatJob
from tunestation.chat.talks import Talk, Turn, to_jsonl
from tunestation.chat.words import ENGLISH
from tunestation.errors import TunestationError

HELP = """/system TEXT   set the system text (without TEXT: remove it)
/reset         begin a new conversation
/retry         ask the last question again
/save FILE     write the conversation as a row of training data (.jsonl)
/quit          end; so does Ctrl-D

A message of several lines stands between two lines of \"\"\". Ctrl-C stops an answer."""
QUOTES = '"""'
REMEMBERED = 1000
"""Lines that the arrow keys bring back, also from earlier conversations."""


class Terminal:
    """One conversation over standard input and output."""

    def __init__(self, engine: Engine, job: ChatJob, typed: TextIO):
        sys.stdin = typed
        self._engine, self._generation = engine, job.generation
        self._history = Path(job.folder) / "terminal-history"
        self._talk = Talk(system=job.system or "")
        self._commands: dict[str, Callable[[str], None]] = {
            "/system": self._set_system,
            "/reset": self._reset,
            "/retry": self._retry,
            "/save": self._save,
            "/help": lambda _: print(HELP),
        }

    def run(self) -> None:
        """Until /quit or the end of the input."""
        print(f"{self._engine.summary()}\n/help names the commands.")
        readline.set_auto_history(False)
        if self._history.is_file():
            readline.read_history_file(self._history)
        while (message := self._read()) not in (None, "/quit"):
            if message.strip():
                if "\n" not in message:
                    readline.add_history(message)
                self._do(message)
        readline.set_history_length(REMEMBERED)
        readline.write_history_file(self._history)

    def _read(self) -> str | None:
        """A line, or the lines between two of quotes; None at the end of the input. Ctrl-C forgets what was typed."""
        lines: list[str] = []
        try:
            line = input("> ")
            if line.strip() != QUOTES:
                return line
            while (line := input(". ")).strip() != QUOTES:
                lines.append(line)
        except EOFError:
            print()
            return "\n".join(lines) if lines else None
        except KeyboardInterrupt:
            print()
            return ""
        return "\n".join(lines)

    def _do(self, message: str) -> None:
        word, _, rest = message.partition(" ")
        if word in self._commands:
            self._commands[word](rest.strip())
        elif word.startswith("/") and "\n" not in message:
            print(f"There is no command {word}.\n{HELP}")
        else:
            self._answer(Turn(message))

    def _answer(self, turn: Turn) -> None:
        messages = [*self._talk.messages("tuned"), {"role": "user", "content": turn.question}]
        try:
            kept, dropped = self._engine.fit(messages, self._generation.max_new_tokens)
            if dropped:
                print(f"({ENGLISH['trimmed'].format(count=dropped)})")
            ending = self._print(turn, Request(tuple(kept), self._generation))
        except KeyboardInterrupt:
            print("\n(stopped)")
        except TunestationError as error:
            print(f"The model could not answer. {error}")
        else:
            cut = ", cut at the longest length" if ending.reason == "length" else ""
            print(f"({ending.completion_tokens} tokens, {ending.speed:.1f} a second{cut})")
        if turn.tuned:
            self._talk.turns.append(turn)

    def _print(self, turn: Turn, request: Request) -> Ending:
        stream = self._engine.stream(request)
        while True:
            try:
                piece = next(stream)
            except StopIteration as end:
                print()
                if end.value.error:
                    raise end.value.error from None
                return end.value
            turn.tuned += piece
            print(piece, end="", flush=True)

    def _set_system(self, text: str) -> None:
        self._talk.system = text
        print("System text set." if text else "No system text.")

    def _reset(self, _: str) -> None:
        self._talk = Talk(system=self._talk.system)
        print("A new conversation.")

    def _retry(self, _: str) -> None:
        if self._talk.turns:
            self._answer(Turn(self._talk.turns.pop().question))
        else:
            print("There is no question yet.")

    def _save(self, name: str) -> None:
        rows = to_jsonl([self._talk])
        if not name or not rows:
            print("There is no answer yet." if name else "Name a file: /save conversation.jsonl")
            return
        path = Path(name).expanduser().absolute()
        try:
            path.write_text(rows, encoding="utf-8")
            print(f"Saved: {path}")
        except OSError as error:
            print(f"It cannot be saved: {error}")
