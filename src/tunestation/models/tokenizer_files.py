"""A tokenizer as files that other programs load as well."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunestation.pipeline.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OF_THIS_MACHINE = ("is_local", "local_files_only")
"""What transformers notes of how the tokenizer was loaded."""


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, into: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template.

    transformers 4, on which other servers stand, knows the class of a plain tokenizer.json by its old name alone, and gives
    token types to models that take none unless the file says otherwise.
    """
    tokenizer.save_pretrained(into)
    path = into / "tokenizer_config.json"
    config = {name: value for name, value in read_json(path).items() if name not in OF_THIS_MACHINE}
    if config["tokenizer_class"] == "TokenizersBackend":
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    write_json(path, config)
