"""What can go wrong, in words for people: what, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: a sentence, its place (file:line or a field), and the next step."""

    what: str
    where: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.what}{' ' if self.remedy else ''}{self.remedy}"


def some(names: Sequence[str]) -> str:
    """At most four of `names`, and how many more."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


class TunestationError(Exception):
    """The work could not be done. Exit code 1."""

    exit_code = 1

    def __init__(self, what: str = "", where: str = "", remedy: str = "", *, problems: Iterable[Problem] = ()):
        self.problems = tuple(problems) or (Problem(what, where, remedy),)
        super().__init__(str(self))

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)

    def to_json(self) -> dict:
        """A form that crosses a process boundary; `from_json` is its inverse."""
        return {"kind": type(self).__name__, "problems": [asdict(problem) for problem in self.problems]}


class InputError(TunestationError):
    """The user's input (recipe, data, argument) is wrong. Exit code 2."""

    exit_code = 2
    standing = "nothing was run"
    """What was done all the same, told beside several problems: `pipeline.run` says it of stages."""

    def __str__(self) -> str:
        lines = super().__str__()
        many = len(self.problems)
        return lines if many == 1 else f"{lines}\n{many} problems; {self.standing}."


class ReproductionDiffers(TunestationError):
    """A result lies outside the tolerance of its lock, or bytes differ on equal inputs. Exit code 3."""

    exit_code = 3


class Interrupted(TunestationError):
    """The user or the machine asked to stop; a complete checkpoint was kept. Exit code 1."""


KINDS = {kind.__name__: kind for kind in (TunestationError, InputError, ReproductionDiffers, Interrupted)}


def from_json(record: dict) -> TunestationError:
    """Rebuild an error that a child process wrote with `to_json`."""
    return KINDS[record["kind"]](problems=[Problem(**problem) for problem in record["problems"]])
