"""JSON: an array of objects, or one object a line. Both go by .json and by .jsonl in the wild."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunestation.data.problems import Problems
from tunestation.data.readers.row import Row
from tunestation.data.readers.strict_json import StrictDecoder
from tunestation.data.readers.text import lines, not_text, open_text, undecodable
from tunestation.errors import InputError, Problem
from tunestation.recipe.data import ReadOptions

CHUNK = 1 << 20
"""Characters of an array read at once."""
NEAR = 16
"""A complaint this near to the end of what was read may only mean that the rest is still to come."""
WHOLE = 1 << 26
"""Bytes up to which a malformed file is read whole, to say what it is."""


def json_rows(path: Path, name: str, options: ReadOptions, problems: Problems) -> Iterator[Row]:
    """One row an object."""
    with open_text(path, options.encoding, "\n") as text:
        array = _first_character(text) == "["
    return _array_rows(path, name, options, problems) if array else _line_rows(path, name, options, problems)


def _first_character(text: io.TextIOBase) -> str:
    while chunk := text.read(CHUNK):
        if found := chunk.lstrip("\ufeff \t\r\n"):
            return found[0]
    return ""


def _line_rows(path: Path, name: str, options: ReadOptions, problems: Problems) -> Iterator[Row]:
    count, decoder = 0, StrictDecoder()
    for number, line in enumerate(lines(path, name, options, problems), start=1):
        if line.isspace():
            continue
        count += 1
        where = f"{name}:{number}"
        try:
            value = decoder.decode(line)
        except (ValueError, RecursionError) as error:
            if count == 1 and _is_one_object(path, options):
                problems.add(Problem("the file is one JSON object.", name, "Write an array of rows, or one row a line."))
                return
            problems.add(Problem(_malformed(error), where))
            continue
        yield from _object(value, where, decoder, problems)


def _is_one_object(path: Path, options: ReadOptions) -> bool:
    if path.stat().st_size > WHOLE:
        return False
    with open_text(path, options.encoding, "\n") as text:
        try:
            return isinstance(json.loads(text.read().removeprefix("\ufeff")), dict)
        except (ValueError, RecursionError):
            return False


def _object(value: Any, where: str, decoder: StrictDecoder, problems: Problems) -> Iterator[Row]:
    try:
        decoder.check(where)
    except InputError as error:
        problems.add(*error.problems)
        return
    if isinstance(value, dict):
        yield Row(value, where)
    else:
        problems.add(Problem(f"the row is no object but {json.dumps(value)[:40]}.", where))


def _malformed(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"malformed JSON: {error.msg} (column {error.colno})."
    if isinstance(error, RecursionError):
        return "malformed JSON: lists or objects are nested too deeply."
    return f"malformed JSON: {error}."  # a whole number of more digits than Python reads


def _array_rows(path: Path, name: str, options: ReadOptions, problems: Problems) -> Iterator[Row]:
    with open_text(path, options.encoding, "\n") as text:
        array = _Array(text, name, options.encoding)
        try:
            for index, value in enumerate(array.values()):
                yield from _object(value, f"{name}:[{index}]", array.decoder, problems)
        except _Broken as broken:
            problems.add(broken.problem)


class _Broken(Exception):
    def __init__(self, problem: Problem):
        self.problem = problem


class _Array:
    """A JSON array, decoded value by value: only the value at hand and one chunk of text are in memory."""

    def __init__(self, text: io.TextIOBase, name: str, encoding: str):
        self._text, self._name, self._encoding = text, name, encoding
        self.decoder = StrictDecoder()
        self._buffer, self._at, self._line, self._ended = "", 0, 1, False

    def values(self) -> Iterator[Any]:
        """Every value of the array. Raises _Broken where the text is malformed: nothing after that can be trusted."""
        self._expect("[")
        if self._next() == "]":
            self._at += 1
        else:
            yield self._value()
            while self._expect(",]") == ",":
                yield self._value()
        if self._next():
            raise self._broken("malformed JSON: Extra data", self._at)

    def _expect(self, wanted: str) -> str:
        found = self._next()
        if not found or found not in wanted:
            raise self._broken(f"malformed JSON: Expecting {' or '.join(repr(one) for one in wanted)}", self._at)
        self._at += 1
        return found

    def _next(self) -> str:
        """The next character that is no white space, without going past it; empty at the end."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in " \t\r\n\ufeff":
                self._at += 1
            if self._at < len(self._buffer) or not self._more():
                return self._buffer[self._at : self._at + 1]

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = self.decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos > len(self._buffer) - NEAR or error.msg.startswith("Unterminated string")
                into = error.pos - self._at
                if not (cut and self._more()):
                    raise self._broken(f"malformed JSON: {error.msg}", self._at + into) from None
            except (ValueError, RecursionError) as error:
                raise self._broken(_malformed(error).removesuffix("."), self._at) from None
            else:
                # A number at the very end may have more digits to come.
                if end < len(self._buffer) or not self._more():
                    self._at = end
                    return value

    def _more(self) -> bool:
        """Read on, as much again as is waiting, so that a long value is not decoded over and over."""
        self._line += self._buffer.count("\n", 0, self._at)
        rest = self._buffer[self._at :]
        chunk = self._text.read(max(CHUNK, len(rest)))
        self._buffer, self._at = rest + chunk, 0
        at = undecodable(self._buffer)
        if at >= 0:
            raise _Broken(not_text(self._buffer[at], self._encoding, f"{self._name}:{self._line + self._buffer.count(chr(10), 0, at)}"))
        return bool(chunk)

    def _broken(self, what: str, at: int) -> _Broken:
        line = self._line + self._buffer.count("\n", 0, at)
        column = at - self._buffer.rfind("\n", 0, at)
        return _Broken(Problem(f"{what} (column {column}).", f"{self._name}:{line}"))
