"""A family's own vocabulary file as tokenizer.json, with its control tokens and, for chat models, its template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunestation.data.templates import TEMPLATES
from tunestation.errors import InputError
from tunestation.models.native.family import Family, Vocabulary
from tunestation.models.tokenizer_files import save_tokenizer
from tunestation.models.vocabulary import sentencepiece, tiktoken

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


def write_tokenizer(family: Family, source: Path, config: dict, template: str | None, into: Path) -> PreTrainedTokenizerFast:
    """Write tokenizer.json and tokenizer_config.json, and return what they hold; `template` is the chat template's text.

    Raises InputError if the vocabulary file is missing or damaged.
    """
    return save(family.vocabulary(config), source, template, into)


def save(vocabulary: Vocabulary, source: Path, template: str | None, into: Path) -> PreTrainedTokenizerFast:
    """As `write_tokenizer`, for what `vocabulary` says of the file in `source`."""
    made = _wrapped(build(vocabulary, source), vocabulary)
    made.chat_template = template
    save_tokenizer(made, into)
    return made


def build(vocabulary: Vocabulary, folder: Path) -> Tokenizer:
    """The pipeline for the vocabulary file in `folder`."""
    path = folder / vocabulary.file
    if not path.is_file():
        raise InputError(
            f"is missing: the tokenizer is made from it ({vocabulary.file}).", str(path), "Copy it from where the weights came from."
        )
    if vocabulary.file.endswith(".tiktoken"):
        return tiktoken.tokenizer(tiktoken.read_ranks(path), vocabulary.pattern, list(vocabulary.added))
    model = sentencepiece.read_model(path)
    made = sentencepiece.tokenizer(model, vocabulary.renamed, set(vocabulary.control))
    _add_control(made, vocabulary)
    return made


def _add_control(made: Tokenizer, vocabulary: Vocabulary) -> None:
    from tokenizers import AddedToken, processors

    made.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in vocabulary.added])
    if vocabulary.begin:
        begin = " ".join(vocabulary.begin)
        pairs = [(text, made.token_to_id(text)) for text in vocabulary.begin]
        made.post_processor = processors.TemplateProcessing(single=f"{begin} $A", pair=f"{begin} $A $B:1", special_tokens=pairs)


def _wrapped(made: Tokenizer, vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    given = {"bos_token": vocabulary.bos, "eos_token": vocabulary.eos, "pad_token": vocabulary.pad, "unk_token": vocabulary.unk}
    tokens = {name: made.id_to_token(one) if isinstance(one, int) else one for name, one in given.items() if one is not None}
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **tokens)


def chat_template(family: Family, config: dict, files: dict) -> str | None:
    """The source's own template; for a chat model without one, the family's; None for a base model."""
    own = files["tokenizer"].get("chat_template")
    if own:
        for old, new in family.vocabulary(config).respelled.items():
            own = own.replace(old, new)
        return own
    chat = family.chat(files)
    if chat is None:
        return None
    return TEMPLATES[chat.template].jinja.replace("{{- bos_token or ", "{{- ")  # a family with a begin of its own has no bos_token
