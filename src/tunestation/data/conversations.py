"""From what a row says to a conversation or text that can be trained, or the reason why it cannot."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from tunestation.data.formats import FORMATS, INSTRUCTIONS, Draft, Message
from tunestation.data.readers import Row
from tunestation.errors import InputError

PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True)
class Conversation:
    """What is learned from one row: messages that end with an answer and hold at least one to learn, or a text."""

    messages: tuple[Message, ...]
    """Empty where `text` is learned."""
    where: str
    """Place of the row."""
    repaired: str = ""
    """What was mended; empty for most rows."""
    text: str | None = None
    """A document for pre-training: every token of it is learned."""
    tools: tuple[dict[str, Any], ...] = ()
    """JSON schemas of the tools that it may call, for `apply_chat_template(tools=...)`."""
    rejected: tuple[Message, ...] = ()
    """Of a preference pair: the turns that are not wanted in place of the last message."""
    file: str = ""
    """The file or generator of the row."""
    number: int = 0
    """Which row of its file, from 1."""
    part: int = 0
    """Which of the recipe's `data.sources`, from 0."""
    copies: int = 1
    """How often it is seen in one epoch."""

    @property
    def digest(self) -> str:
        """SHA-256 of all that is learned from it: equal for exact duplicates, wherever they come from."""
        turns = [[message.turn(), message.loss] for message in self.messages]
        content = [self.text, turns, self.tools, [message.turn() for message in self.rejected]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Dropped:
    """A row that cannot be trained."""

    where: str
    reason: str
    file: str = ""
    number: int = 0
    part: int = 0
    fate: Literal["dropped", "blank", "left out"] = "dropped"
    """blank: there is nothing in the row; left out: by the source's limit. Neither counts among the rows."""


class Reading(Protocol):
    """How the rows of a part are read; the recipe's DataPart is one."""

    format: Any
    system: str | None
    variables: Mapping[str, str]


def to_conversation(row: Row, part: Reading) -> Conversation | Dropped:
    """Read one row: its format, the part's system text where the row has none, the part's variables.

    Raises InputError if a text or a role has the wrong type, or a placeholder has no value.
    """
    if not row.values:
        return Dropped(row.where, "the row is blank", row.file, row.number, fate="blank")
    chosen = FORMATS[part.format.kind]
    wanted = chosen.columns(part.format)
    if not any(column in row.values for column in wanted):
        what = f"the row has no column {_listed(wanted)}, which '{part.format.kind}' reads; it has: {', '.join(row.values)}."
        raise InputError(what, row.where, "Put rows of another kind into a file and a source of their own.")
    return judge(_completed(chosen.read(part.format, row), part, row.where), row)


def _listed(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _completed(draft: Draft, part: Reading, where: str) -> Draft:
    """The draft with the part's system text and variables."""
    messages = [message for message in draft.messages if message.role not in INSTRUCTIONS or message.content.strip()]
    if part.system and messages and messages[0].role not in INSTRUCTIONS:
        messages.insert(0, Message("system", part.system))
    if not part.variables:
        return replace(draft, messages=messages)
    text = None if draft.text is None else filled(draft.text, part.variables, where)
    both = (tuple(_filled(message, part, where) for message in turns) for turns in (messages, draft.rejected))
    return replace(draft, text=text, **dict(zip(("messages", "rejected"), both, strict=True)))


def _filled(message: Message, part: Reading, where: str) -> Message:
    return replace(message, content=filled(message.content, part.variables, where))


def judge(draft: Draft, row: Row) -> Conversation | Dropped:
    """Cut questions that nobody answered off the end, and drop what holds nothing to learn."""
    last = max((index for index, message in enumerate(draft.messages) if message.role == "assistant"), default=-1)
    kept, cut = tuple(draft.messages[: last + 1]), len(draft.messages) - last - 1
    reason = draft.unusable or (_untrainable(kept) if draft.text is None else "" if draft.text.strip() else "empty text")
    if reason:
        return Dropped(row.where, reason, row.file, row.number)
    mended = [draft.repaired] if draft.repaired else []
    mended += [f"cut {cut} unanswered turn{'s' if cut > 1 else ''} at the end"] if cut else []
    return Conversation(kept, row.where, "; ".join(mended), draft.text, draft.tools, draft.rejected, row.file, row.number)


def _untrainable(messages: tuple[Message, ...]) -> str:
    """Why these messages cannot be trained; empty if they can."""
    turns = [message for message in messages if message.role not in INSTRUCTIONS]
    if not turns:
        return "no answer"
    if turns[0].role == "assistant":
        return "begins with an answer: no question before it"
    blank = next((turn for turn in turns if _says_nothing(turn)), None)
    if blank:
        return "empty question" if blank.role == "user" else "empty answer"
    if not any(turn.loss for turn in turns if turn.role == "assistant"):
        return "all labels are masked: no answer has loss"
    return ""


def _says_nothing(turn: Message) -> bool:
    """A tool may answer with an empty text; a question, or an answer without tool calls, may not."""
    return turn.role != "tool" and not turn.tool_calls and not turn.content.strip()


def filled(text: str, variables: Mapping[str, str], where: str) -> str:
    """`text` with every `{{name}}` replaced by its value."""
    unknown = sorted({name for name in PLACEHOLDER.findall(text) if name not in variables})
    if unknown:
        what = f"the placeholder {{{{{unknown[0]}}}}} has no value."
        raise InputError(what, where, f"Add '{unknown[0]}' to the part's variables, which has: {', '.join(variables)}.")
    return PLACEHOLDER.sub(lambda found: variables[found[1]], text)
