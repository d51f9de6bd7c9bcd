"""Collects everything that is wrong with a file, so that it is told at once."""

from __future__ import annotations

from tunestation.errors import InputError, Problem

LIMIT = 20
"""Problems of one file told in full; a file with the wrong layout has one on every row."""


class Problems:
    """What is wrong with the file `name`: the first LIMIT problems, and how many more there are."""

    def __init__(self, name: str):
        self.name = name
        self._first: list[Problem] = []
        self._more = 0

    def add(self, *problems: Problem) -> None:
        """Note problems, in the order of the file."""
        free = LIMIT - len(self._first)
        self._first += problems[:free]
        self._more += len(problems[free:])

    def __bool__(self) -> bool:
        return bool(self._first)

    def told(self) -> tuple[Problem, ...]:
        """The problems to show."""
        rest = [Problem(f"and {self._more} more problems like these.", self.name)] if self._more else []
        return (*self._first, *rest)

    def raise_if_any(self) -> None:
        """Raises InputError with all problems, if there are any."""
        if self._first:
            raise InputError(problems=self.told())
