"""From messages to token ids and labels. Training, the chat page and the API all come through here.

A conversation is cut into prompts and answers, and the texts between these cuts are tokenised one by one.
At generation a model sees exactly such a cut: a prompt tokenised by itself. So the ids of training are the ids of use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import TYPE_CHECKING, Literal

from tunestation.data.control import control_tokens, encode_marked, marked
from tunestation.data.formats import Message
from tunestation.data.rendering import Cut, Rendered, label, remedy
from tunestation.data.templates import BY_JINJA
from tunestation.data.templates.turns import Misplaced
from tunestation.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
"""Label of a token that is not learned (PyTorch's cross entropy leaves it out)."""
TrainOn = Literal["assistant", "last", "all"]


@dataclass(frozen=True)
class Piece:
    """A text that is tokenised by itself."""

    text: str
    trained: bool
    """Whether its tokens are labels."""
    marked: bool = False
    """Whether markers stand around control tokens that are to be encoded as text."""
    before: str = ""
    """The text that it goes on from, where the tokenizer does otherwise at the beginning of a text than within one."""

    @property
    def texts(self) -> list[str]:
        """What has to be tokenised: with `before` the ids of the piece are what the first text has beyond the second."""
        return [self.before + self.text, self.before] if self.before else [self.text]


@dataclass(frozen=True)
class Encoded:
    """One conversation as ids; both lists have the same length."""

    input_ids: list[int]
    labels: list[int]
    """The id where it is learned, IGNORE elsewhere."""

    @property
    def labelled(self) -> int:
        """How many tokens are learned."""
        return len(self.labels) - self.labels.count(IGNORE)


class Encoder:
    """Cuts conversations by a tokenizer's chat template, and tokenises the pieces."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn = "assistant"):
        """`train_on`: learn every answer, the last answer of a conversation alone, or every token."""
        self.tokenizer = tokenizer
        self.train_on = train_on
        self.turns = template.turns if (template := BY_JINJA.get(tokenizer.chat_template)) else None
        self.control = control_tokens(tokenizer)
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_padding()
        self.backend.no_truncation()
        self.backend.encode_special_tokens = False
        self.contextual = self.turns is None and self._is_contextual()
        self.begin = tokenizer.bos_token or self._own_begin()

    def _is_contextual(self) -> bool:
        """Whether a text begins with a space of its own, or a token swallows the white space beside it."""
        adds_space = self._ids("a") != self._ids("\na")[len(self._ids("\n")) :]
        return adds_space or any(token.lstrip or token.rstrip for token in self.tokenizer.added_tokens_decoder.values())

    def _own_begin(self) -> str:
        """What a tokenizer without bos_token puts before every text by itself, as ChatGLM's `[gMASK]<sop>`."""
        found = self.backend.encode("a")
        tokens = takewhile(lambda pair: pair[1], zip(found.tokens, found.special_tokens_mask, strict=True))
        return "".join(token for token, _ in tokens)

    def pieces(self, messages: Sequence[Message], where: str = "", tools: Sequence[dict] = ()) -> list[Piece]:
        """Cut a conversation that ends with an answer; `tools` are the JSON schemas of those that it may call.

        An answer ends right after the stop token; what many templates write after it belongs to what follows and is not
        learned. Raises InputError, placed at `where`, if the template refuses the messages, writes an earlier turn
        differently once a later one is there, or does not end an answer with the stop token.
        """
        turns, told = self._turns(messages, where)
        if self.turns:
            found, after = self._by_name(turns, where, tools)
            found += [(after, None)] if after else []
        else:
            found = Rendered(self.tokenizer, tools, where).answered(turns)
        return self._labelled(found, messages, told)

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict] = ()) -> list[Piece]:
        """Cut what the model sees when it is asked to answer the last message. Raises InputError as `pieces` does."""
        turns, told = self._turns(messages, "")
        if self.turns:
            found, prompt = self._by_name(turns, "", tools)
            found += [(prompt, None)]
        else:
            found = Rendered(self.tokenizer, tools).prompt(turns)
        return self._labelled(found, messages, told)

    def _turns(self, messages: Sequence[Message], where: str) -> tuple[list[dict], bool]:
        """The messages as templates read them, and whether they hold marked control tokens."""
        turns = [message.turn() for message in messages]
        told = marked(turns, self.control, where)
        return told or turns, told is not None

    def document(self, text: str) -> list[Piece]:
        """A text to be learned as a whole, between what a text begins with and eos_token where the tokenizer has them."""
        told = marked([{"role": "user", "content": text}], self.control, "")
        middle = Piece(told[0]["content"] if told else text, True, told is not None)
        begin = [Piece(self.begin, False)] if self.begin else []
        end = [Piece(self.tokenizer.eos_token, True)] if self.tokenizer.eos_token else []
        return [*begin, middle, *end]

    def _by_name(self, turns: Sequence[dict], where: str, tools: Sequence[dict]) -> tuple[list[Cut], str]:
        try:
            if tools or any("tool_calls" in turn for turn in turns):
                raise Misplaced("has no place for tools")
            contents = ((turn["role"], turn["content"]) for turn in turns)
            return self.turns.pieces(contents, self.tokenizer.bos_token or "", self.tokenizer.eos_token)
        except Misplaced as error:
            raise InputError(f"{label(self.tokenizer)} {error}.", where, remedy(where)) from None

    def _labelled(self, found: Sequence[Cut], messages: Sequence[Message], told: bool) -> list[Piece]:
        last = max((index for index, message in enumerate(messages) if message.role == "assistant"), default=-1)
        wanted = {index for index, message in enumerate(messages) if message.loss and (self.train_on != "last" or index == last)}
        befores = ["", *(text for text, _ in found)] if self.contextual else [""] * len(found)
        return [
            Piece(text, self.train_on == "all" if index is None else index in wanted, told, before)
            for (text, index), before in zip(found, befores, strict=False)
        ]

    def encode(self, conversations: Sequence[Sequence[Piece]]) -> list[Encoded]:
        """Tokenise the pieces of many conversations in one call, which uses all cores where TOKENIZERS_PARALLELISM allows it."""
        plain = [text for piece in chain.from_iterable(conversations) if not piece.marked for text in piece.texts]
        found = iter(self.backend.encode_batch_fast(plain, add_special_tokens=False))
        return [_joined((piece.trained, self._of(piece, found)) for piece in pieces) for pieces in conversations]

    def _of(self, piece: Piece, found: Iterator[Encoding]) -> list[int]:
        whole, *before = [encode_marked(self.tokenizer, text) if piece.marked else next(found).ids for text in piece.texts]
        if not before:
            return whole
        count = len(before[0])
        if whole[:count] == before[0]:
            return whole[count:]
        return encode_marked(self.tokenizer, piece.text) if piece.marked else self._ids(piece.text)

    def _ids(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids


def _joined(parts: Iterable[tuple[bool, list[int]]]) -> Encoded:
    input_ids: list[int] = []
    labels: list[int] = []
    for trained, ids in parts:
        input_ids += ids
        labels += ids if trained else [IGNORE] * len(ids)
    return Encoded(input_ids, labels)


def encode(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], train_on: TrainOn = "assistant") -> Encoded:
    """Ids and labels of one conversation. Raises InputError as `Encoder.pieces` does."""
    encoder = Encoder(tokenizer, train_on)
    return encoder.encode([encoder.pieces(messages)])[0]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Ids of what the model sees when it is asked to answer the last message. Raises InputError as `Encoder.pieces` does."""
    encoder = Encoder(tokenizer)
    return encoder.encode([encoder.prompt(messages)])[0].input_ids
