"""Control tokens spelled out inside a text: they are encoded as that text, and never end or begin a turn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tunestation.data.templates import BY_JINJA
from tunestation.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BEGIN, END = "\U000f0000", "\U000f0001"
"""Private-use characters laid around a spelled-out token while the template writes the turns."""
MARKED = re.compile(f"{BEGIN}([^{BEGIN}{END}]*){END}|[{BEGIN}{END}]")
"""A marked token; or one marker alone, where the template cut between the two."""


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern:
    """Matches the spelling of any special token, and of any added token that a built-in template writes."""
    known = BY_JINJA.get(tokenizer.chat_template)
    written = known.jinja if known else ""
    added = tokenizer.added_tokens_decoder.values()
    names = {token.content for token in added if token.special or (token.content in written and token.content.strip())}
    longest_first = sorted({*names, *tokenizer.all_special_tokens}, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def marked(turns: Sequence[dict], control: re.Pattern, where: str) -> list[dict] | None:
    """`turns` with markers around every spelled-out control token; None if there is none.

    Raises InputError for a text that holds a marker of its own beside a control token: it would be lost.
    """
    texts = [turn["content"] if len(turn) == 2 else json.dumps(turn, ensure_ascii=False) for turn in turns]
    if not any(control.search(text) for text in texts):
        return None
    if any(marker in text for text in texts for marker in (BEGIN, END)):
        raise InputError("holds a control token and the private-use character U+F0000 or U+F0001.", where, "Remove that character.")
    return _mark(list(turns), control)


def _mark(value: Any, control: re.Pattern) -> Any:
    if isinstance(value, str):
        return control.sub(f"{BEGIN}\\g<0>{END}", value)
    if isinstance(value, dict):
        return {key: _mark(item, control) for key, item in value.items()}
    return [_mark(item, control) for item in value] if isinstance(value, list) else value


def encode_marked(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text with markers, which are left out; what they stand around is encoded as plain text.

    Raises InputError if the tokenizer makes a control token even of plain text.
    """
    first, *rest = MARKED.split(text)
    ids = _as_usual(tokenizer, first)
    for number, part in enumerate(rest):
        if not part:
            continue
        spelled = number % 2 == 0
        found = _within(tokenizer, _plainly if spelled else _as_usual, part)
        if spelled and tokenizer.convert_tokens_to_ids(part) in found:
            raise InputError(f"this tokenizer cannot write {part} as text.", remedy="Remove it from the row.")
        ids += found
    return ids


def _within(tokenizer: PreTrainedTokenizerBase, encode: Callable[[PreTrainedTokenizerBase, str], list[int]], text: str) -> list[int]:
    """Ids of a text that does not begin anything: after a line break no tokenizer adds the space that some add at a beginning."""
    before, found = encode(tokenizer, "\n"), encode(tokenizer, f"\n{text}")
    return found[len(before) :] if found[: len(before)] == before else encode(tokenizer, text)


def _as_usual(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def _plainly(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The steps of the tokenizer without its search for added tokens."""
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = [text] if backend.pre_tokenizer is None else [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for word in words for token in backend.model.tokenize(word)]
