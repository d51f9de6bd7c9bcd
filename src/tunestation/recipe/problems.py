"""Turns pydantic's findings into sentences with a line, the nearest valid key and what to do."""

from __future__ import annotations

import difflib
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tunestation.errors import Problem
from tunestation.recipe.document import Document, Key
from tunestation.recipe.schema import Recipe


def problems_of(error: ValidationError, document: Document) -> list[Problem]:
    """One problem for each wrong place of the file, in the order of its lines."""
    plain = document.plain()
    places: dict[tuple[Key, ...], list[ErrorDetails]] = {}
    for details in _without_echoes(error.errors()):
        places.setdefault(_keys(details["loc"], plain), []).append(details)
    found = [problem for keys, alternatives in places.items() for problem in _problems(alternatives, keys, document)]
    return sorted(found, key=lambda problem: _line(problem.where))


def _line(where: str) -> int:
    tail = where.rpartition(":")[2]
    return int(tail) if tail.isdigit() else 0


def _without_echoes(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """A list with a wrong item is also called too short, or not the word that could stand in its place: the item's problem says it all."""
    locations = [details["loc"] for details in errors]

    def echo(details: ErrorDetails) -> bool:
        own = details["loc"]
        other = details["type"] == "literal_error" and str(own[-1]).startswith("literal[")  # one of several types that would do
        place = own[:-1] if other else own
        below = any(loc[: len(place)] == place and len(loc) > len(own) for loc in locations)
        return (other or details["type"] == "too_short") and below

    return [details for details in errors if not echo(details)]


def _keys(loc: tuple[Key, ...], plain: Any) -> tuple[Key, ...]:
    """The place in the file: `loc` without the tags that pydantic adds for unions."""
    keys: list[Key] = []
    node = plain
    for index, part in enumerate(loc):
        inside = (isinstance(node, dict) and part in node) or (isinstance(node, list) and isinstance(part, int) and part < len(node))
        if inside:
            keys.append(part)
            node = node[part]
        elif index == len(loc) - 1 and (isinstance(node, dict) or (isinstance(node, list) and isinstance(part, int))):
            keys.append(part)
    return tuple(keys)


def dotted(keys: tuple[Key, ...]) -> str:
    """`data.sources[0].format`."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def _problems(alternatives: list[ErrorDetails], keys: tuple[Key, ...], document: Document) -> list[Problem]:
    """What is wrong at one place; `alternatives` are several where any one of several types would do."""
    details = alternatives[0]
    kind, name = details["type"], dotted(keys)
    if kind == "value_error" and not keys:
        return [_clash(line, document) for line in str(details["ctx"]["error"]).split("\n")]
    where = document.where(keys)
    if kind == "extra_forbidden":
        return [Problem(f"{name} is not a field.", where, suggestion(str(keys[-1]), _fields(details["loc"][:-1])))]
    if kind == "missing":
        return [Problem(f"{name} is missing.", where, _description(details["loc"]))]
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return [_tag_problem(details, name, where)]
    return [Problem(f"{name} {_sentence(alternatives)}", where)]


def _clash(line: str, document: Document) -> Problem:
    field, _, sentence = line.partition("|")
    keys = tuple(int(key) if key.isdecimal() else key for key in field.split("."))
    return Problem(f"{dotted(keys)}: {sentence}", document.where(keys))


def _tag_problem(details: ErrorDetails, name: str, where: str) -> Problem:
    expected = [tag.strip(" '") for tag in details["ctx"].get("expected_tags", "").split(",") if tag.strip()]
    if details["type"] == "union_tag_not_found":
        choices = list(_node(details["loc"]).get("discriminator", {}).get("mapping", {}))
        return Problem(f"{name}.kind is missing.", where, f"Choose one of: {', '.join(choices)}.")
    tag = str(details["ctx"]["tag"])
    return Problem(f"{name}.kind '{tag}' is not known.", where, suggestion(tag, expected))


WORDS = {
    "a valid string": "a text",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid array": "a list",
    "an object": "a mapping of fields",
    "should": "must",
}
"""pydantic's words -> words for people who write YAML."""


PATTERNS = {
    r"^[a-z0-9][a-z0-9._-]*$": "a name of small letters, digits, '.', '_' and '-'",
    r"^\w+$": "a name of letters, digits and '_'",
    r"^\d+(\.\d+)?(MB|GB)$": "a size as 2GB or 500MB",
    r"^[A-Za-z0-9][\w.-]*/[\w.-]+$": "a repository as owner/name",
    r"^[0-9a-f]{64}$": "a SHA-256 of 64 digits from 0 to f",
    r"^https?://": "an address that begins with https:// or http://",
}
"""Patterns of the schema -> what they stand for."""


def _sentence(alternatives: list[ErrorDetails]) -> str:
    details = alternatives[0]
    if details["type"] == "value_error":
        return f"({details['input']!r}) {details['msg'].removeprefix('Value error, ')}"
    wanted = " or ".join(_wanted(each).removeprefix("must be ") for each in alternatives)
    return f"must be {wanted}, not {_shown(details['input'])}."


def _wanted(details: ErrorDetails) -> str:
    limits = details.get("ctx", {})
    if details["type"] == "string_pattern_mismatch":
        return PATTERNS.get(limits["pattern"], f"a text like {limits['pattern']}")
    if details["type"] == "string_too_short":
        return "a text that is not empty"
    if details["type"] == "too_short":
        return f"a list of {limits['min_length']} or more"
    if details["type"] == "too_long":
        return f"a list of {limits['max_length']} at most"
    message = details["msg"].removeprefix("Input ")
    for theirs, ours in WORDS.items():
        message = message.replace(theirs, ours)
    return message


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else f"a list of {len(value)}"
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def suggestion(word: str, choices: list[str]) -> str:
    """What to do about an unknown `word`: the nearest of `choices`, or all of them."""
    near = difflib.get_close_matches(word, choices, 1, 0.6)
    if near:
        return f"Did you mean '{near[0]}'?"
    return f"Choose from: {', '.join(choices)}." if choices else "Remove it."


def _node(loc: tuple[Key, ...]) -> dict:
    """The JSON schema at `loc`."""
    schema = _schema()
    node = schema
    for part in loc:
        node = _deref(_step(node, part), schema)
    return node


@cache
def _schema() -> dict:
    return Recipe.model_json_schema()


def _step(node: dict, part: Key) -> dict:
    mapping = node.get("discriminator", {}).get("mapping", {})
    if part in mapping:
        return {"$ref": mapping[part]}
    if isinstance(part, int):
        return node.get("items", {})
    return node.get("properties", {}).get(part, {})


def _deref(node: dict, schema: dict) -> dict:
    return schema["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node


def _fields(loc: tuple[Key, ...]) -> list[str]:
    return list(_node(loc).get("properties", {}))


def _description(loc: tuple[Key, ...]) -> str:
    return str(_node(loc[:-1]).get("properties", {}).get(loc[-1], {}).get("description", "")).split("\n")[0]
