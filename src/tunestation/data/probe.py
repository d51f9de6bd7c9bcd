"""Two fixed conversations as ids: what training saw, for the page, the API and the merged folder to be compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunestation.data.encoding import encode, encode_prompt
from tunestation.data.formats import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES = {
    "en": (Message("user", "Who are you?"), Message("assistant", "I am an assistant. 12 + 7 = 19.")),
    "zh": (Message("user", "你是谁？"), Message("assistant", "我是一个助手。12 + 7 = 19。")),
}
"""One question and one answer each: templates that rewrite earlier turns can be probed as well."""


def ids_digest(ids: Sequence[int]) -> str:
    """SHA-256 of ids written as little-endian 32-bit integers."""
    return hashlib.sha256(b"".join(number.to_bytes(4, "little", signed=True) for number in ids)).hexdigest()


def probe(tokenizer: PreTrainedTokenizerBase) -> dict[str, dict]:
    """Language -> messages, input_ids, labels, prompt_ids, sha256 of input_ids, and same_as_chat_template.

    same_as_chat_template says whether `apply_chat_template(tokenize=True)`, which other programs use on the merged
    folder, gives these very ids for the conversation and for the prompt.
    """
    return {language: _probe(tokenizer, messages) for language, messages in PROBES.items()}


def _probe(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> dict:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    encoded, prompt_ids = encode(tokenizer, messages), encode_prompt(tokenizer, messages[:1])
    whole = tokenizer.apply_chat_template(turns, return_dict=False)
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    return {
        "messages": turns,
        "input_ids": encoded.input_ids,
        "labels": encoded.labels,
        "prompt_ids": prompt_ids,
        "sha256": ids_digest(encoded.input_ids),
        "same_as_chat_template": whole == encoded.input_ids and prompt == prompt_ids,
    }
