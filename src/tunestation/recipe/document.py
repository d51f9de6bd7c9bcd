"""A YAML file with the line of every key: what the reader of a recipe works on."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tunestation.errors import InputError

Key = str | int
DEEPEST = 50
"""Levels that a recipe may have; those that have a meaning are far fewer."""


@dataclass
class Document:
    """The parsed file; `tree` keeps positions, `overrides` holds what `--set` put in its place."""

    path: Path
    tree: CommentedMap
    overrides: dict[tuple[Key, ...], str] = field(default_factory=dict)

    def where(self, keys: Sequence[Key]) -> str:
        """`file:line` of the value at `keys` or of its nearest existing parent; `--set ...` where that changed it."""
        for length in range(len(keys), 0, -1):
            if tuple(keys[:length]) in self.overrides:
                return f"--set {self.overrides[tuple(keys[:length])]}"
        return f"{self.path}:{self._line(keys)}"

    def _line(self, keys: Sequence[Key]) -> int:
        node, line = self.tree, 0
        for key in keys:
            if isinstance(node, CommentedMap) and key in node:
                line = node.lc.key(key)[0] if key in (node.lc.data or {}) else line
            elif isinstance(node, CommentedSeq) and isinstance(key, int) and key < len(node):
                line = node.lc.item(key)[0] if key in (node.lc.data or {}) else line
            else:
                break
            node = node[key]
        return line + 1

    def plain(self) -> Any:
        """The tree as JSON types; dates stay text. Raises InputError if it is deeper than any recipe."""
        try:
            return _plain(self.tree, DEEPEST)
        except RecursionError:
            raise _strange(self.path) from None


def _plain(node: Any, room: int) -> Any:
    if not room:
        raise RecursionError
    if isinstance(node, dict):
        return {str(key): _plain(value, room - 1) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value, room - 1) for value in node]
    if node is None or isinstance(node, (bool, int, float)):
        return node
    return str(node)


def read(path: Path) -> Document:
    """Read `path` as YAML 1.2. Raises InputError with the line for anything that is no mapping of unique keys."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text (byte {error.start}).", str(path), "Save it as UTF-8.") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}.", str(path)) from None
    tree = _parse(path, text)
    if not isinstance(tree, CommentedMap):
        found = "is empty" if tree is None else "holds no mapping of keys"
        raise InputError(f"{found}.", str(path), "A recipe has at least schema_version, name, summary, model and data.")
    return Document(path, tree)


def _parse(path: Path, text: str) -> Any:
    try:
        return YAML(typ="rt").load(io.StringIO(text))
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1
        key = re.search(r'duplicate key "(.*?)" with value', error.problem)
        raise InputError(f"'{key[1] if key else 'a key'}' stands here a second time.", f"{path}:{line}", "Keep one of them.") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise InputError(*_explain(path, text, line, str(error.problem))) from None
    except YAMLError as error:
        raise InputError(f"is not YAML: {str(error).splitlines()[0]}", str(path)) from None
    except (RecursionError, ValueError):  # brackets in brackets, or more digits than Python makes a number of
        raise _strange(path) from None


def _strange(where: Path | str) -> InputError:
    return InputError("nests too deeply, or holds a number with thousands of digits.", str(where), "No recipe needs that.")


def _explain(path: Path, text: str, line: int, problem: str) -> tuple[str, str, str]:
    lines = text.splitlines()
    tabbed = next((n for n in (line, line - 1) if 0 < n <= len(lines) and "\t" in lines[n - 1]), None)
    if tabbed:
        return "a tab stands where YAML needs spaces.", f"{path}:{tabbed}", "Indent with spaces."
    return f"this is not YAML: {problem}.", f"{path}:{line}", "See the lines around it for a missing colon, quote or bracket."


def override(document: Document, assignment: str) -> None:
    """Put the value of `a.b.0.c=value`, or `a.b[0].c=value`, into the document; the value is read as YAML."""
    target, equals, text = assignment.partition("=")
    if not equals or not target:
        raise InputError(f"'{assignment}' is not key=value.", "--set", "Write for example --set train.epochs=1.")
    places = re.sub(r"\[(\d+)\]", r".\1", target.strip()).split(".")  # as messages write them, or with dots alone
    keys = tuple(int(part) if part.isdecimal() else part for part in places)
    value = _value(target, text)
    node: Any = document.tree
    for key in keys[:-1]:
        node = _descend(node, key, assignment)
    try:
        node[keys[-1]] = value
    except (IndexError, TypeError, ValueError):
        raise InputError(f"'{target}' cannot be set to '{text}'.", "--set", "Name a field of the recipe.") from None
    document.overrides[keys] = assignment


def _value(target: str, text: str) -> Any:
    """What stands behind the equals sign, as YAML."""
    try:
        return YAML(typ="rt").load(io.StringIO(text)) if text.strip() else ""
    except YAMLError:
        what = f"the value of {target} is not YAML: '{text}'."
        raise InputError(what, "--set", "See to its quotes and brackets, or put the whole of it in quotes.") from None
    except (RecursionError, ValueError):
        raise _strange(f"--set {target}") from None


def _descend(node: Any, key: Key, assignment: str) -> Any:
    if isinstance(node, CommentedMap):
        return node.setdefault(key, CommentedMap())
    if isinstance(node, CommentedSeq) and isinstance(key, int) and key < len(node):
        return node[key]
    raise InputError(f"'{assignment}' names a place that the recipe does not have ('{key}').", "--set", "Name a field of the recipe.")
