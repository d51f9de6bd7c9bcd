"""From messages to token ids and labels. Training, the chat page and the API all come through here.

The chat template is rendered up to each answer and after it; the texts between these cuts are tokenised one by one.
At generation a model sees exactly such a cut: a prompt tokenised by itself. So the ids of training are the ids of use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from tunestation.data.formats import Message
from tunestation.data.templates import TEMPLATES
from tunestation.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
"""Label of a token that is not learned (PyTorch's cross entropy leaves it out)."""


@dataclass(frozen=True)
class Piece:
    """A text that is tokenised by itself."""

    text: str
    trained: bool
    """Whether its tokens are labels."""


@dataclass(frozen=True)
class Encoded:
    """One conversation as ids; both lists have the same length."""

    input_ids: list[int]
    labels: list[int]
    """The id where it is learned, IGNORE elsewhere."""

    def cut(self, max_tokens: int) -> Encoded:
        """The first `max_tokens` tokens."""
        return Encoded(self.input_ids[:max_tokens], self.labels[:max_tokens])

    @property
    def labelled(self) -> int:
        """How many tokens are learned."""
        return len(self.labels) - self.labels.count(IGNORE)


def encode(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Encoded:
    """Ids and labels of one conversation. Raises InputError as `pieces` does."""
    return encode_pieces(tokenizer, [pieces(tokenizer, messages)])[0]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Ids of what the model sees when it is asked to answer the last message. Raises InputError as `pieces` does."""
    found, text, after = _answered(tokenizer, messages, "")
    prompt = render(tokenizer, messages, prompt=True)
    _continues(tokenizer, text, prompt, "")
    return encode_pieces(tokenizer, [[*found, Piece(after + prompt[len(text) :], False)]])[0].input_ids


def encode_pieces(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Piece]]) -> list[Encoded]:
    """Tokenise the pieces of many conversations in one call: several times the speed of one by one."""
    texts = [piece.text for piece in chain.from_iterable(conversations)]
    ids = iter(tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"])
    return [_joined((piece.trained, next(ids)) for piece in conversation) for conversation in conversations]


def _joined(parts: Iterable[tuple[bool, list[int]]]) -> Encoded:
    input_ids: list[int] = []
    labels: list[int] = []
    for trained, ids in parts:
        input_ids += ids
        labels += ids if trained else [IGNORE] * len(ids)
    return Encoded(input_ids, labels)


def pieces(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], where: str = "") -> list[Piece]:
    """Cut the rendered conversation into prompts and answers; its last message must be an answer.

    An answer ends right after the stop token (`tokenizer.eos_token`); the newline that many templates write after it
    belongs to what follows and is not learned. Raises InputError, placed at `where`, if the template refuses the
    messages, writes an earlier turn differently once a later one is there, or does not end an answer with the stop token.
    """
    found, _, after = _answered(tokenizer, messages, where)
    return [*found, Piece(after, False)] if after else found


def _answered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], where: str) -> tuple[list[Piece], str, str]:
    """The pieces up to the last answer, the text rendered so far, and its end after the stop token, which is in no piece yet."""
    found: list[Piece] = []
    text = after = ""
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = render(tokenizer, messages[:index], True, where)
        _continues(tokenizer, text, prompt, where)
        whole = render(tokenizer, messages[: index + 1], False, where)
        _continues(tokenizer, prompt, whole, where)
        answer, rest = _split_at_stop(tokenizer, whole[len(prompt) :], where)
        found += [Piece(after + prompt[len(text) :], False), Piece(answer, message.loss)]
        text, after = whole, rest
    return found, text, after


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], prompt: bool, where: str = "") -> str:
    """The messages as the chat template writes them; with `prompt`, up to where the next answer begins."""
    from jinja2 import TemplateError

    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
    except TemplateError as error:
        remedy = "Change the row, or name another template."
        raise InputError(f"{_template(tokenizer)} refuses this conversation: {error}.", where, remedy) from None


def _continues(tokenizer: PreTrainedTokenizerBase, before: str, after: str, where: str) -> None:
    if after.startswith(before):
        return
    at = next((index for index, (old, new) in enumerate(zip(before, after, strict=False)) if old != new), min(len(before), len(after)))
    what = (
        f"{_template(tokenizer)} writes an earlier turn differently once a later one follows, so training and use would not agree: "
        f"{before[at : at + 40]!r} becomes {after[at : at + 40]!r}."
    )
    raise InputError(what, where, "Name another template, as 'chatml', or use conversations of one question and one answer.")


def _split_at_stop(tokenizer: PreTrainedTokenizerBase, turn: str, where: str) -> tuple[str, str]:
    """The answer with its stop token, and the whitespace after it."""
    stop = tokenizer.eos_token
    end = turn.rfind(stop) + len(stop)
    if stop in turn and not turn[end:].strip():
        return turn[:end], turn[end:]
    end_of_answer = f"{_template(tokenizer)} ends an answer with {turn[-20:]!r}"
    what = f"{end_of_answer}: the stop token {stop!r} is never trained, and answers would never end."
    raise InputError(what, where, "Name a template whose stop token is the tokenizer's, or mend the tokenizer's eos_token.")


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    name = next((name for name, template in TEMPLATES.items() if template.jinja == tokenizer.chat_template), "the model's own")
    return f"the chat template ({name})"
