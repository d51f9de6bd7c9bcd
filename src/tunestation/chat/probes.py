"""Before anything is served: does this tokenizer make the token ids that training saw?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunestation.data.encoding import encode, encode_prompt
from tunestation.data.formats import Message
from tunestation.data.probe import ids_digest
from tunestation.errors import InputError
from tunestation.pipeline.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_probes(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Compare with the probe.json that `prepare` wrote. Raises InputError, naming each conversation whose ids differ."""
    if "strftime_now" in str(tokenizer.chat_template):
        return  # such a template writes today's date: `prepare` has said that another day gives other ids
    different = [language for language, probe in read_json(file).items() if not _same(tokenizer, probe)]
    if different:
        what = f"the tokenizer or chat template to serve makes other token ids than training saw ({', '.join(different)} in {file})."
        raise InputError(what, remedy="Files of the result or the versions of transformers differ: 'invoke verify RECIPE' names the files.")


def _same(tokenizer: PreTrainedTokenizerBase, probe: dict) -> bool:
    messages = [Message(message["role"], message["content"]) for message in probe["messages"]]
    whole, prompt = encode(tokenizer, messages), encode_prompt(tokenizer, messages[:1])
    return ids_digest(whole.input_ids) == probe["sha256"] and prompt == probe["prompt_ids"]
