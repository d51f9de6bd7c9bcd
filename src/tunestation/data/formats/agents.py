"""Data of two projects that taught tools before chat templates knew them: read as tool calls and tool messages."""

from __future__ import annotations

import ast
import re
from typing import Any

from tunestation.data.formats.message import Draft, Message
from tunestation.data.formats.registry import row_format
from tunestation.data.formats.tools import parsed
from tunestation.data.formats.values import Unusable, column, kind, objects, text
from tunestation.data.readers.row import Row
from tunestation.errors import InputError

MOSS_MARKS = re.compile(r"^\s*<\|[^|<>]*\|>:?\s*|\s*<eo[htcrm]>\s*$")
"""`<|Human|>: ... <eoh>`: the marks around each field, which belong to the moss_sft template and not to the text."""
AGENT_PARTS = re.compile(r"<\|startof(think|exec)\|>(.*?)<\|endof\1\|>", re.DOTALL)
FENCE = re.compile(r"^\s*```(?:JSON|json)?|```\s*$")


@row_format("moss", columns=lambda params: ("chat",))
def _moss(params: Any, row: Row) -> Draft:
    """MOSS's turns `{Human, Inner Thoughts, Commands, Tool Responses, MOSS}` below `chat`, with `meta_instruction` as system text.

    A turn with commands becomes four messages: question, thoughts and commands, what the tools answer (never trained),
    answer. "None" in thoughts and commands stands for nothing, and is left out.
    """
    chat = row.values["chat"]
    if not isinstance(chat, dict):
        raise InputError(f"chat is {kind(chat)}, not an object.", row.where)
    system = column(row, "meta_instruction")
    messages = [Message("system", system)] if system.strip() else []
    for number in range(1, len([name for name in chat if name.startswith("turn_")]) + 1):
        messages += _moss_turn(chat.get(f"turn_{number}"), f"chat.turn_{number}", row.where)
    return Draft(messages)


def _moss_turn(turn: Any, name: str, where: str) -> list[Message]:
    if not isinstance(turn, dict):
        raise InputError(f"{name} is {kind(turn)}, not an object.", where)
    keys = ("Human", "Inner Thoughts", "Commands", "Tool Responses", "MOSS")
    asked, thoughts, commands, results, said = (MOSS_MARKS.sub("", text(turn.get(key), f"{name}.{key}", where)) for key in keys)
    thoughts, commands = ("" if each.strip() == "None" else each for each in (thoughts, commands))
    acting = "\n".join(each for each in (thoughts, commands) if each)
    used = [Message("assistant", acting), Message("tool", results)] if commands else []
    return [Message("user", asked), *used, Message("assistant", said)]


@row_format("msagent_react", columns=lambda params: ("conversations",))
def _msagent(params: Any, row: Row) -> Draft:
    """ModelScope-Agent's turns, in which an answer holds a call between `<|startofthink|>` and `<|endofthink|>` and its result.

    XTuner turns them into ReAct text of its own wording; here the call and the result become a tool call and a tool
    message, which each model's chat template writes in its own way. A list written as Python text is read as data, never run.
    """
    messages: list[Message] = []
    for index, turn in enumerate(objects(_listed(row), "conversations", row.where)):
        name = f"conversations[{index}]"
        speaker, said = turn.get("from"), text(turn.get("value"), f"{name}.value", row.where)
        if speaker not in ("system", "user", "assistant"):
            raise InputError(f"{name} is from {speaker!r}.", row.where, "Known speakers are system, user, assistant.")
        messages += _acted(said, name, row.where) if speaker == "assistant" else [Message(speaker, said)]
    return Draft(messages)


def _listed(row: Row) -> Any:
    value = row.values["conversations"]
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(text(value, "conversations", row.where))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return parsed(value, "conversations", row.where)


def _acted(said: str, name: str, where: str) -> list[Message]:
    """An assistant's text as messages: what it says before a call, the call, its result, what it says in the end."""
    found: list[Message] = []
    at = 0
    for part in AGENT_PARTS.finditer(said):
        before, content = said[at : part.start()].strip(), FENCE.sub("", part[2].strip()).strip()
        at = part.end()
        if part[1] == "exec":
            found += ([Message("assistant", before)] if before else []) + [Message("tool", content)]
        else:
            found.append(Message("assistant", before, tool_calls=(_agent_call(content, name, where),)))
    rest = said[at:].strip()
    return [*found, Message("assistant", rest)] if rest or not found else found


def _agent_call(content: str, name: str, where: str) -> dict[str, Any]:
    try:
        call = parsed(content, name, where)
    except InputError:
        raise Unusable(f"{name} holds a call that is no JSON") from None
    if not isinstance(call, dict) or not isinstance(call.get("api_name"), str) or not isinstance(call.get("parameters", {}), dict):
        raise Unusable(f"{name} holds a call without api_name and parameters")
    return {"type": "function", "function": {"name": call["api_name"], "arguments": call.get("parameters", {})}}
