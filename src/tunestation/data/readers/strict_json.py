"""JSON in which no key stands twice: Python's own reader keeps the last value and loses the others without a word."""

from __future__ import annotations

import json
from typing import Any

from tunestation.errors import InputError


class StrictDecoder(json.JSONDecoder):
    """Decodes as usual, and remembers a key that stood twice in one object."""

    def __init__(self):
        super().__init__(object_pairs_hook=self._object)
        self._twice: str | None = None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            self._twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        return found

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        """(value, where it ends), as json.JSONDecoder has it; every decoding comes through here."""
        self._twice = None
        return super().raw_decode(s, idx)

    def check(self, where: str, name: str = "the row") -> None:
        """Raises InputError, placed at `where`, if a key stood twice in what was decoded last, which is called `name`."""
        if self._twice is not None:
            raise InputError(f"{name} has the key '{self._twice}' twice in one object.", where, "Keep one of them.")
