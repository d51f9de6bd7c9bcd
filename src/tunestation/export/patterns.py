"""Regular expressions in an adapter's configuration. No torch here: recipes are checked with it."""

from __future__ import annotations

import re
from collections.abc import Iterator

EXPRESSIONS = ("target_modules", "exclude_modules")
"""Fields that peft reads as a regular expression where they are one text, and as names where they are a list."""
KEYED = ("rank_pattern", "alpha_pattern")
"""Fields whose keys are regular expressions."""


def bad_patterns(config: dict) -> list[str]:
    """What of an adapter_config.json is no regular expression though peft matches names with it, in words."""
    return [f"{field} {text!r} is no regular expression ({error})" for field, text in _patterns(config) if (error := _error(text))]


def _patterns(config: dict) -> Iterator[tuple[str, str]]:
    yield from ((field, config[field]) for field in EXPRESSIONS if isinstance(config.get(field), str))
    yield from ((field, key) for field in KEYED for key in config.get(field) or ())
    layers = config.get("layers_pattern") or ()
    yield from (("layers_pattern", text) for text in ([layers] if isinstance(layers, str) else layers))


def _error(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        return str(error)
    return ""
