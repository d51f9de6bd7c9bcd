"""Questions with known answers, read from files or from a generator. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from tunestation.data.readers import Row, read_rows
from tunestation.errors import InputError, Problem
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
    rows = _rows(check, volumes)
    found = [_question(row, check) for row in rows]
    problems = [item for item in found if isinstance(item, Problem)]
    if problems or not found:
        raise InputError(problems=problems or [Problem("has no questions.", f"evaluate.checks {check['name']}")])
    return found


def _rows(check: dict, volumes: Volumes) -> list[Row]:
    generator = check["generator"]
    if generator:
        from tunestation.starter.generator import GENERATORS

        made = GENERATORS[generator["name"]](generator["seed"], generator["count"])
        return [Row(values, f"{generator['name']}[{number}]") for number, values in enumerate(made)]
    return list(chain.from_iterable(read_rows(volumes.path(file["ref"]), file["ref"].partition(":")[2]) for file in check["files"]))


def _question(row: Row, check: dict) -> Question | Problem:
    exact = check["match"] == "exact"
    wanted = row.values.get("answer" if exact else "contains")
    wanted = [wanted] if exact else wanted
    prompt = row.values.get("prompt")
    if not isinstance(prompt, str) or not isinstance(wanted, list) or not all(isinstance(text, str) for text in wanted):
        needed = '{"prompt": text, "answer": text}' if exact else '{"prompt": text, "contains": [texts]}'
        return Problem("is no question.", row.where, f"A row with match: {check['match']} is {needed}.")
    filled = [_fill(text, check["variables"]) for text in (prompt, *wanted)]
    group = " ".join(str(row.values[name]) for name in ("topic", "language") if name in row.values)
    return Question(filled[0], tuple(filled[1:]), exact, group or "all")


def _fill(text: str, variables: dict[str, str]) -> str:
    for name, value in variables.items():
        text = text.replace("{{" + name + "}}", value)
    return text
