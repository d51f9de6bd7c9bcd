"""Conversations as the page and the terminal keep them, and as they leave: rows of training data."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from tunestation.pipeline.files import write_json

Who = Literal["tuned", "base"]
_ID = re.compile(r"[0-9a-f]{32}")
MOST = 200
"""Conversations of one browser that are listed; older ones are exported all the same."""


def new_id() -> str:
    """A name that nobody guesses."""
    return uuid.uuid4().hex


@dataclass
class Turn:
    """A question and what the tuned and the untuned model answered; "" where they have not."""

    question: str
    tuned: str = ""
    base: str = ""
    better: Literal["", "tuned", "base", "same"] = ""
    """The vote."""

    def answer(self, who: Who) -> str:
        """What `who` is told that it answered; the other's words where it was not asked."""
        return (self.tuned, self.base)[who == "base"] or self.tuned or self.base


@dataclass
class Talk:
    """One conversation."""

    id: str = field(default_factory=new_id)
    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    changed: float = 0.0
    """Seconds since the epoch."""

    @property
    def title(self) -> str:
        """Its first question, on one line."""
        return " ".join(self.turns[0].question.split())[:60] if self.turns else ""

    @property
    def undecided(self) -> bool:
        """Whether the last turn has two answers and no vote."""
        last = self.turns[-1] if self.turns else Turn("")
        return bool(last.tuned and last.base and not last.better)

    def messages(self, who: Who, until: int | None = None) -> list[dict]:
        """What `who` sees of the first `until` turns. Questions without an answer are left out."""
        found = [{"role": "system", "content": self.system}] if self.system.strip() else []
        for turn in self.turns[:until]:
            if turn.answer(who):
                found += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer(who)}]
        return found

    def row(self) -> dict:
        """A row of training data, `{"messages": [...]}`; where the untuned answer was voted better it is the one to learn."""
        turns = [Turn(turn.question, turn.answer("base" if turn.better == "base" else "tuned")) for turn in self.turns]
        return {"messages": Talk(system=self.system, turns=turns).messages("tuned")}


def to_jsonl(talks: Iterable[Talk]) -> str:
    """The conversations with at least one answer, one a line, as `data.sources` with format `messages` reads them."""
    rows = [talk.row() for talk in talks]
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows if any(one["role"] == "assistant" for one in row["messages"]))


class Shelf:
    """`<folder>/<browser>/<talk>.json`: every browser sees its own conversations alone, by a name that nobody guesses."""

    def __init__(self, folder: Path):
        self._folder = folder

    def all(self, browser: str) -> list[Talk]:
        """The conversations of `browser`, newest first."""
        files = (self._folder / browser).glob("*.json") if _ID.fullmatch(browser) else ()
        return sorted(map(_read, files), key=lambda talk: talk.changed, reverse=True)

    def get(self, browser: str, talk: str) -> Talk:
        """The conversation `talk` of `browser`; a new one if there is none."""
        path = self._path(browser, talk)
        return _read(path) if path and path.is_file() else Talk()

    def save(self, browser: str, talk: Talk) -> None:
        """Keep `talk`; one without turns goes away. It gets a new id if another window has changed this one since: both are kept."""
        if self._path(browser, talk.id) is None:
            return
        if self.get(browser, talk.id).changed not in (0.0, talk.changed):
            talk.id = new_id()
        path = self._path(browser, talk.id)
        talk.changed = time.time()
        path.parent.mkdir(parents=True, exist_ok=True)
        if talk.turns:
            write_json(path, asdict(talk))
        else:
            path.unlink(missing_ok=True)

    def _path(self, browser: str, talk: str) -> Path | None:
        """None for names that this code has not made: they come from the browser."""
        known = _ID.fullmatch(browser) and _ID.fullmatch(talk)
        return self._folder / browser / f"{talk}.json" if known else None


def _read(path: Path) -> Talk:
    plain = json.loads(path.read_text(encoding="utf-8"))
    return Talk(**plain | {"turns": [Turn(**turn) for turn in plain["turns"]]})


class Votes:
    """Votes on pairs of answers, one a line: `messages`, `tuned`, `base`, `better`."""

    def __init__(self, path: Path):
        self._path = path
        self._writing = threading.Lock()

    def add(self, talk: Talk, index: int) -> None:
        """Append the vote on turn `index`, on a line of its own also after one that was cut off by a full disk or a power failure."""
        turn = talk.turns[index]
        question = [*talk.messages("tuned", index), {"role": "user", "content": turn.question}]
        vote = {"messages": question, "tuned": turn.tuned, "base": turn.base, "better": turn.better, "time": round(time.time())}
        with self._writing, self._path.open("a+b") as file:
            file.seek(max(file.tell() - 1, 0))
            begun = b"" if file.read() in (b"", b"\n") else b"\n"
            file.write(begun + f"{json.dumps(vote, ensure_ascii=False)}\n".encode())

    def count(self) -> dict[str, int]:
        """tuned, same, base -> votes. A line that was cut off is none."""
        lines = self._path.read_bytes().split(b"\n") if self._path.is_file() else []  # splitlines would cut at U+2028 as well
        found = list(map(_better, lines))
        return {better: found.count(better) for better in ("tuned", "same", "base")}


def _better(line: bytes) -> str:
    try:
        return json.loads(line)["better"]
    except ValueError:
        return ""
