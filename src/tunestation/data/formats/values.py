"""Values of a row as texts, flags and lists; a wrong type is the user's mistake and is told with the row and the field."""

from __future__ import annotations

from typing import Any

from tunestation.data.readers.row import Row, Unreadable
from tunestation.errors import InputError


class Unusable(Exception):
    """Nothing can be learned from a row, and that is no mistake in it: the row is dropped, with this reason."""


def column(row: Row, name: str) -> str:
    """The text in the column `name` of `row`. Raises InputError if it is none."""
    return text(row.values.get(name), name, row.where)


def text(value: Any, name: str, where: str) -> str:
    """`value` as a text: a missing value and null are the empty one. Raises InputError for anything else that is no text."""
    if value is None:
        return ""
    if isinstance(value, Unreadable):
        raise InputError(f"{name} {value.reason}.", where, value.remedy)
    if not isinstance(value, str):
        raise InputError(f"{name} is {kind(value)}, not a text.", where)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name} holds half a character (\\u{ord(value[error.start]):04x}).", where, "Mend the row's escapes.") from None
    return value


def flag(value: Any, name: str, where: str) -> bool:
    """`value` as true or false: a missing value and null are true. Raises InputError for anything else."""
    if value is None or isinstance(value, bool):
        return value is not False
    raise InputError(f"{name} is {kind(value)}, not true or false.", where)


def objects(value: Any, name: str, where: str) -> list[dict]:
    """`value` as a list of objects: a missing value and null are the empty one. Raises InputError for anything else."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise InputError(f"{name} is {kind(value)}, not a list.", where)
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise InputError(f"{name}[{index}] is {kind(item)}, not an object.", where)
    return value


def kind(value: Any) -> str:
    """The kind of a value in words."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")
