"""Which files of a repository are fetched. What is left out is counted and named."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatch

from tunestation.errors import InputError, Problem
from tunestation.fetching.hubs import Asked, RemoteFile
from tunestation.models.folder import is_model_file, is_weight


def model_files(asked: Asked, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Configuration, safetensors weights and tokenizer: never Python code, pickles or other formats, never a subfolder.

    Raises InputError when there are no safetensors weights.
    """
    kept = [file for file in files if "/" not in file.path and is_model_file(file.path)]
    if not any(is_weight(file.path) for file in kept):
        raise _without_weights(asked, files)
    left = [file.path for file in files if file not in kept and not file.path.startswith(".git")]
    if left:
        print(f"not fetched from {asked.repo}, as nothing here reads them: {len(left)} files ({_some(left)})", flush=True)
    return kept


def data_files(asked: Asked, files: Sequence[RemoteFile], patterns: Sequence[str]) -> list[RemoteFile]:
    """The files that `patterns` name, in their order, each once. Raises InputError for every pattern without a file."""
    readable = [file for file in files if not file.path.endswith(".py")]
    matches = {pattern: [file for file in readable if fnmatch(file.path, pattern)] for pattern in patterns}
    problems = [_nothing_matches(asked, pattern, readable) for pattern, found in matches.items() if not found]
    if problems:
        raise InputError(problems=problems)
    return list(dict.fromkeys(file for found in matches.values() for file in found))


def _without_weights(asked: Asked, files: Sequence[RemoteFile]) -> InputError:
    pickles = [file.path for file in files if file.path.endswith((".bin", ".pt", ".pth"))]
    if pickles:
        what = f"The {asked} has its weights as pickles only ({_some(pickles)}), which can run code when read."
        return InputError(what, "", "Give a safetensors revision: many repositories have one in a branch or pull request (refs/pr/1).")
    return InputError(f"The {asked} has no weights (model.safetensors).", "", "Give a repository that transformers can load.")


def _nothing_matches(asked: Asked, pattern: str, files: Sequence[RemoteFile]) -> Problem:
    names = [file.path for file in files]
    near = get_close_matches(pattern, names, 1)
    remedy = f"Did you mean '{near[0]}'?" if near else f"It has: {_some(names)}."
    return Problem(f"The {asked} has no file '{pattern}'.", "", remedy)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
