"""From what a row says to a conversation or text that can be trained, or the reason why it cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from tunestation.data.formats import FORMATS, INSTRUCTIONS, Draft, Message, Unusable
from tunestation.data.readers import Row
from tunestation.errors import InputError

PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True)
class Conversation:
    """What is learned from one row: messages that end with an answer and hold at least one to learn, or a text."""

    messages: tuple[Message, ...]
    """Empty where `text` is learned."""
    where: str
    """Place of the row: with the source a name that never changes while the file does not."""
    repaired: str = ""
    """What was mended; empty for most rows."""
    text: str | None = None
    """A document for pre-training: every token of it is learned."""
    tools: tuple[dict[str, Any], ...] = ()
    """JSON schemas of the tools that it may call, for `apply_chat_template(tools=...)`."""
    rejected: tuple[Message, ...] = ()
    """Of a preference pair: the turns that are not wanted in place of the last message."""
    copies: int = 1
    """How often it is seen in one epoch."""


@dataclass(frozen=True)
class Dropped:
    """A row that cannot be trained."""

    where: str
    reason: str
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
        return Dropped(row.where, "the row is blank", "blank")
    chosen = FORMATS[part.format.kind]
    wanted = chosen.columns(part.format)
    if not any(column in row.values for column in wanted):
        what = f"the row has no column {_listed(wanted)}, which '{part.format.kind}' reads; it has: {', '.join(row.values)}."
        raise InputError(what, row.where, "Put rows of another kind into a file and a source of their own.")
    try:
        draft = chosen.read(part.format, row)
    except Unusable as unusable:
        return Dropped(row.where, str(unusable))
    return judge(_completed(draft, part, chosen.system, row.where), row)


def _listed(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _completed(draft: Draft, part: Reading, default: str, where: str) -> Draft:
    """The draft with the part's system text, or else the format's, and with the part's variables."""
    messages = [message for message in draft.messages if message.role not in INSTRUCTIONS or message.content.strip()]
    system = default if part.system is None else part.system
    if system and messages and messages[0].role not in INSTRUCTIONS:
        messages.insert(0, Message("system", system))
    if not part.variables:
        return replace(draft, messages=messages)
    text = None if draft.text is None else filled(draft.text, part.variables, where)
    both = (tuple(_filled(message, part, where) for message in turns) for turns in (messages, draft.rejected))
    return replace(draft, text=text, **dict(zip(("messages", "rejected"), both, strict=True)))


def _filled(message: Message, part: Reading, where: str) -> Message:
    return replace(message, content=filled(message.content, part.variables, where))


def judge(draft: Draft, row: Row) -> Conversation | Dropped:
    """Cut answers without a question off the beginning and questions without an answer off the end; drop what holds nothing to learn."""
    if draft.text is not None:
        kept, mended, reason = (), "", "" if draft.text.strip() else "empty text"
    else:
        kept, mended = _cut(draft.messages)
        reason = _untrainable(kept)
    if reason:
        return Dropped(row.where, reason)
    return Conversation(kept, row.where, mended, draft.text, draft.tools, draft.rejected)


def _cut(messages: Sequence[Message]) -> tuple[tuple[Message, ...], str]:
    """The messages from the first question to the last answer, with the instructions before them, and what was cut off in words."""
    asked = [index for index, message in enumerate(messages) if message.role == "user"]
    answered = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not asked or not answered or answered[-1] < asked[0]:
        return tuple(messages), ""
    first, last = asked[0], answered[-1]
    instructions = [message for message in messages[:first] if message.role in INSTRUCTIONS]
    cut = {"answer": first - len(instructions), "unanswered turn": len(messages) - last - 1}
    places = {"answer": "before the first question", "unanswered turn": "at the end"}
    told = [f"cut {count} {what}{'s' if count > 1 else ''} {places[what]}" for what, count in cut.items() if count]
    return (*instructions, *messages[first : last + 1]), "; ".join(told)


def _untrainable(messages: tuple[Message, ...]) -> str:
    """Why these messages cannot be trained; empty if they can."""
    turns = [message for message in messages if message.role not in INSTRUCTIONS]
    if not any(turn.role == "assistant" for turn in turns):
        return "no answer"
    if turns[0].role != "user":
        return "begins with an answer: no question before it"
    blank = next((turn for turn in turns if _says_nothing(turn)), None)
    if blank:
        return "empty question" if blank.role == "user" else "empty answer"
    if turns[-1].role != "assistant":
        return "no answer"
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
