"""Tool definitions and tool calls, in the one form that chat templates render."""

from __future__ import annotations

from typing import Any

from tunestation.data.formats.values import kind, objects, text
from tunestation.data.readers.row import Row
from tunestation.data.readers.strict_json import StrictDecoder
from tunestation.errors import InputError


def tools(row: Row) -> tuple[dict[str, Any], ...]:
    """The row's `tools` (a list of JSON schemas, or its JSON text), or its older `functions`; empty for most rows."""
    for name in ("tools", "functions"):
        value = row.values.get(name)
        if value:
            return tuple(objects(parsed(value, name, row.where), name, row.where))
    return ()


def tool_calls(turn: dict, name: str, where: str) -> tuple[dict[str, Any], ...]:
    """The calls of a turn as `{"type": "function", "function": {"name", "arguments": {...}}}`, with their `id` where they have one."""
    calls = objects(parsed(turn.get("tool_calls"), f"{name}.tool_calls", where), f"{name}.tool_calls", where)
    named = [(call.get("id"), call.get("function"), f"{name}.tool_calls[{index}].function") for index, call in enumerate(calls)]
    if turn.get("function_call"):
        named.append((None, parsed(turn["function_call"], f"{name}.function_call", where), f"{name}.function_call"))
    return tuple(_call(identity, function, place, where) for identity, function, place in named)


def _call(identity: Any, function: Any, name: str, where: str) -> dict[str, Any]:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InputError(f"{name} has no name of a function.", where, 'A call is {"name": ..., "arguments": {...}}.')
    arguments = parsed(function.get("arguments") or {}, f"{name}.arguments", where)
    if not isinstance(arguments, dict):
        raise InputError(f"{name}.arguments is {kind(arguments)}, not an object.", where)
    call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": text(identity, f"{name}.id", where)} | call if identity else call


def parsed(value: Any, name: str, where: str) -> Any:
    """`value`, decoded if it is a JSON text. Raises InputError if the text is malformed, or holds a key twice in one object."""
    if not isinstance(value, str):
        return value
    decoder = StrictDecoder()
    try:
        found = decoder.decode(text(value, name, where))
    except (ValueError, RecursionError):
        raise InputError(f"{name} is a text that is no JSON: {value[:40]!r}.", where) from None
    decoder.check(where, name)
    return found
