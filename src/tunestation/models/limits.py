"""How long a text a converted model takes: up to the length to which it computes what the original computes. No torch here."""

from __future__ import annotations

from pathlib import Path

from tunestation.errors import InputError, Problem
from tunestation.models.native.family import Limit
from tunestation.models.native.registry import family_of
from tunestation.pipeline.files import read_json

RECORD = "conversion.json"
"""What a converted folder says of itself."""


def limit_of(folder: Path) -> Limit | None:
    """The limit of a model folder, converted already or not; None where the rules agree at any length, or nothing says more."""
    if (folder / RECORD).is_file():
        limit = read_json(folder / RECORD)["limit"]
        return Limit(**limit) if limit else None
    config = _config(folder)
    family = family_of(config)
    try:
        return family.limit(config) if family else None
    except KeyError:  # the check of the folder names the field that is missing
        return None


def context_of(folder: Path) -> int | None:
    """Tokens for which the model of `folder` was made, as its configuration says; None where that says nothing."""
    found = _config(folder).get("max_position_embeddings")
    return found if isinstance(found, int) and found > 0 else None


def _config(folder: Path) -> dict:
    return read_json(folder / "config.json") if (folder / "config.json").is_file() else {}


def length_problem(limit: Limit | None, max_tokens: int) -> Problem | None:
    """What is wrong with training on texts of up to `max_tokens`; None if nothing is."""
    if limit is None or max_tokens <= limit.tokens:
        return None
    what = f"is {max_tokens}, but the converted model equals the original up to {limit.tokens} tokens only: {limit.why}."
    return Problem(what, "train.max_tokens", f"Set it to {limit.tokens} or less.")


def check_length(folder: Path, max_tokens: int) -> None:
    """Raise InputError if texts of `max_tokens` are longer than the model of `folder` takes."""
    if problem := length_problem(limit_of(folder), max_tokens):
        raise InputError(problems=[problem])
