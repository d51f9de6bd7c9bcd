"""Which files of a repository are fetched. What is left out is counted and named."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatch

from tunestation.errors import InputError, Problem, some
from tunestation.fetching.hubs import Asked, RemoteFile
from tunestation.models.folder import files_that_count, is_weight


def model_files(asked: Asked, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Configuration, weights and tokenizer: never Python code or other formats, never a subfolder; pickles only where nothing else is.

    Raises InputError when there are no weights.
    """
    names = set(files_that_count(file.path for file in files if "/" not in file.path))
    kept = [file for file in files if file.path in names]
    if not any(is_weight(file.path) for file in kept):
        raise InputError(f"The {asked} has no weights (model.safetensors).", "", "Give a repository that transformers can load.")
    left = [file.path for file in files if file not in kept and not file.path.startswith(".git")]
    if left:
        print(f"not fetched from {asked.repo}, as nothing here reads them: {len(left)} files ({some(left)})", flush=True)
    return kept


def data_files(asked: Asked, files: Sequence[RemoteFile], patterns: Sequence[str]) -> list[RemoteFile]:
    """The files that `patterns` name, in their order, each once. Raises InputError for every pattern without a file."""
    readable = [file for file in files if not file.path.endswith(".py")]
    matches = {pattern: [file for file in readable if fnmatch(file.path, pattern)] for pattern in patterns}
    problems = [_nothing_matches(asked, pattern, readable) for pattern, found in matches.items() if not found]
    if problems:
        raise InputError(problems=problems)
    return list(dict.fromkeys(file for found in matches.values() for file in found))


def _nothing_matches(asked: Asked, pattern: str, files: Sequence[RemoteFile]) -> Problem:
    names = [file.path for file in files]
    near = get_close_matches(pattern, names, 1)
    remedy = f"Did you mean '{near[0]}'?" if near else f"It has: {some(names)}."
    return Problem(f"The {asked} has no file '{pattern}'.", "", remedy)
