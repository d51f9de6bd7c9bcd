"""Control tokens spelled out inside a text: they are encoded as that text, and never end or begin a turn."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunestation.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKERS = ("\U000f0000", "\U000f0001")
"""What transformers' `mark_control_tokens` lays around a spelled-out token."""


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern:
    """Matches the spelling of any special token, and of any added token that the chat template writes."""
    from transformers.utils.chat_template_utils import _get_control_token_patterns

    names = {*tokenizer._get_control_tokens(tokenizer.chat_template or ""), *tokenizer.all_special_tokens}
    return _get_control_token_patterns(tuple(sorted(names)))[0]


def marked(turns: Sequence[dict], control: re.Pattern, where: str) -> list[dict] | None:
    """`turns` with markers around every spelled-out control token; None if there is none.

    Raises InputError for a text that holds a marker of its own beside a control token: it would be lost.
    """
    from transformers.utils.chat_template_utils import mark_control_tokens

    texts = [_text(turn) for turn in turns]
    if not any(control.search(text) for text in texts):
        return None
    if any(marker in text for text in texts for marker in MARKERS):
        raise InputError("holds a control token and the private-use character U+F0000 or U+F0001.", where, "Remove that character.")
    return mark_control_tokens(list(turns), control)


def _text(turn: dict) -> str:
    """All that a turn says."""
    return turn["content"] if len(turn) == 2 else json.dumps(turn, ensure_ascii=False)


def encode_marked(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text with markers. Raises InputError if the tokenizer makes a control token even of plain text."""
    from transformers.utils.chat_template_utils import encode_marked_chat

    try:
        return encode_marked_chat(tokenizer, text)
    except ValueError as error:
        raise InputError(f"a control token cannot be written as text: {error}.", remedy="Remove it from the row.") from None


