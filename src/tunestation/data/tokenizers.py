"""Tokenizers: trained on the data, or the model's own; with the chat template that the recipe names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunestation.data.encoding import encode
from tunestation.data.formats import Message
from tunestation.data.probe import PROBES
from tunestation.data.rendering import check_compiles, render
from tunestation.data.templates import BY_JINJA, TEMPLATES
from tunestation.errors import InputError
from tunestation.models.folder import TOKENIZERS, stop_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
EXAMPLE = (Message("user", "Hi"), Message("assistant", "Hello"))


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE with at most `vocab_size` entries, learned from `texts`.

    Every digit is a token of its own, and no token holds two Chinese characters: without spaces a small corpus would
    turn whole clauses into single tokens. Pairs seen once make no token. Ids 0, 1, 2 are padding, the beginning and the
    end of a turn. Equal texts give equal bytes.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [PAD, START, STOP]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=STOP, pad_token=PAD)


def load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the model folder called `name`. Code in the folder is never run.

    Raises InputError if there is no tokenizer, or none that can be read without such code.
    """
    from transformers import AutoTokenizer

    if not any((folder / file).is_file() for file in TOKENIZERS):
        what = f"the model folder has no tokenizer: none of {', '.join(TOKENIZERS)} is there."
        raise InputError(what, name, "Copy the tokenizer's files from where the model came from.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # damaged files raise whatever the parser of their format raises
        first = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "Fetch the model again, or use one whose tokenizer transformers reads."
        raise InputError(f"the tokenizer cannot be read: {first}", name, remedy) from None
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer ({type(tokenizer).__name__}) has no fast form.", name, "Save it as tokenizer.json.")
    return tokenizer


def set_template(tokenizer: PreTrainedTokenizerBase, name: str, folder: Path | None, jinja: str | None = None) -> None:
    """Give `tokenizer` the chat template `name`, the token that ends an answer as eos_token, and a pad_token.

    `auto` is the tokenizer's own template, and with `jinja` the name is that of the file which holds this text; what ends
    an answer there is the eos_token or another stop token of the model `folder`. Raises InputError if there is no such
    template, it fails, ends no answer with a stop token, or encodes otherwise as a whole than turn by turn.
    """
    if jinja:
        check_compiles(jinja, name)
    tokenizer.chat_template = jinja or tokenizer.chat_template
    with _placed(f"template '{name}'"):
        tokenizer.eos_token = _own_stop(tokenizer, folder, name) if jinja or name == "auto" else _named(tokenizer, name)
        pad(tokenizer)
        if not BY_JINJA.get(tokenizer.chat_template):
            _agree(tokenizer, name)


@contextmanager
def _placed(where: str) -> Iterator[None]:
    """What is tried here is an example of ours: where it fails, the template is at fault and no row."""
    try:
        yield
    except InputError as error:
        raise InputError(problems=[replace(problem, where=problem.where or where) for problem in error.problems]) from None


def pad(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give it a pad_token if it has none; what is padded is never looked at."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def _named(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    if name not in TEMPLATES:
        raise InputError(f"template '{name}' is not known.", "template", f"Choose from: auto, {', '.join(TEMPLATES)}.")
    template = TEMPLATES[name]
    stop = template.stop or tokenizer.eos_token
    if stop is None:
        what = f"template '{name}' ends an answer with the tokenizer's eos_token; this tokenizer has none."
        raise InputError(what, "template", "Choose 'auto', or a template with a stop token of its own, as 'chatml'.")
    if len(tokenizer(stop, add_special_tokens=False)["input_ids"]) != 1 or stop not in tokenizer.get_vocab():
        what = f"template '{name}' ends an answer with {stop}, which is not one token of this tokenizer."
        raise InputError(what, "template", "Choose 'auto' or a template made for this model.")
    tokenizer.chat_template = template.jinja
    return stop


def _own_stop(tokenizer: PreTrainedTokenizerBase, folder: Path | None, name: str) -> str:
    if tokenizer.chat_template is None:
        remedy = f"Name a built-in one: {', '.join(TEMPLATES)}."
        raise InputError("template 'auto' is the tokenizer's own chat template, but it has none.", "template", remedy)
    written = render(tokenizer, [message.turn() for message in EXAMPLE], prompt=False).rstrip()
    candidates = [tokenizer.eos_token, *tokenizer.convert_ids_to_tokens(stop_ids(folder) if folder else [])]
    stop = next((token for token in candidates if token and written.endswith(token)), None)
    if stop is None:
        what = f"template '{name}' ends an answer with {written[-20:]!r}: the stop token {tokenizer.eos_token!r} is never trained."
        raise InputError(what, "template", f"Name a built-in template: {', '.join(TEMPLATES)}.")
    return stop


def _agree(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises InputError if the ids of a whole conversation are not those of its turns one after the other."""
    for messages in PROBES.values():
        parts = encode(tokenizer, messages).input_ids
        text = render(tokenizer, [message.turn() for message in messages], prompt=False)
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        if parts != whole:
            at = next((n for n, (one, other) in enumerate(zip(parts, whole, strict=False)) if one != other), min(len(parts), len(whole)))
            turn_by_turn, at_once = (tokenizer.convert_ids_to_tokens(ids[at : at + 4]) for ids in (parts, whole))
            what = f"template '{name}' is {turn_by_turn} turn by turn, but {at_once} at once: use would not see what was trained."
            raise InputError(what, "template", "End the prompt with a control token or a line break, or name a built-in template.")
