"""Questions with known answers, read from files or from a generator. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from tunestation.data.conversations import filled
from tunestation.data.parts import generated
from tunestation.data.problems import Problems
from tunestation.data.readers import Row, read_rows
from tunestation.errors import InputError
from tunestation.pipeline.volumes import Volumes


@dataclass(frozen=True)
class Question:
    """A prompt and what its answer must be (match: exact) or hold (match: contains)."""

    prompt: str
    wanted: tuple[str, ...]
    exact: bool
    group: str
    """Topic and language, for the report."""

    def right(self, answer: str) -> bool:
        """Whether `answer` is right; white space around it does not count."""
        return answer.strip() == self.wanted[0] if self.exact else all(text in answer for text in self.wanted)


def questions_of(check: dict, volumes: Volumes) -> list[Question]:
    """The questions of a check of the recipe. Raises InputError naming every row that is none."""
    problems, found = Problems(check["name"]), []
    for row in _rows(check, volumes, problems):
        try:
            found.append(_question(row, check))
        except InputError as error:
            problems.add(*error.problems)
    problems.raise_if_any()
    if not found:
        raise InputError("has no questions.", check["name"], "Name a file with questions, or a generator and its count.")
    return found


def _rows(check: dict, volumes: Volumes, problems: Problems) -> list[Row]:
    if check["generator"]:
        return generated(**check["generator"])
    tables = (read_rows(volumes.path(file["ref"]), file["ref"].partition(":")[2], problems) for file in check["files"])
    return [row for row in chain.from_iterable(tables) if row.values]


def _question(row: Row, check: dict) -> Question:
    exact = check["match"] == "exact"
    wanted = row.values.get("answer" if exact else "contains")
    texts = [row.values.get("prompt"), *([wanted] if exact else wanted if isinstance(wanted, list) else [None])]
    if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        needed = '{"prompt": text, "answer": text}' if exact else '{"prompt": text, "contains": [texts]}'
        raise InputError("is no question.", row.where, f"A row with match: {check['match']} is {needed}.")
    prompt, *wanted = (filled(text, check["variables"], row.where) if check["variables"] else text for text in texts)
    group = " ".join(str(row.values[name]) for name in ("topic", "language") if name in row.values)
    return Question(prompt, tuple(wanted), exact, group or "all")
