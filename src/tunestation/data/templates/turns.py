"""XTuner's way of writing a conversation: strings around each turn, each piece tokenised by itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FOLLOWS = {
    "": ("system", "developer", "user"),
    "system": ("system", "developer", "user"),
    "developer": ("system", "developer", "user"),
    "user": ("assistant",),
    "assistant": ("system", "developer", "user"),
}
"""Role -> roles that may come next; "" is the beginning."""
INSTRUCTIONS = ("system", "developer")
JINJA = """{{#- {name}: strings of XTuner's template of this name -#}}
{{%- set ns = namespace(begin=true, round=0) -%}}
{{%- for message in messages -%}}
    {{%- if ns.begin and message['role'] != 'assistant' -%}}
        {{{{- {begin} -}}}}
        {{%- set ns.begin = false -%}}
    {{%- endif -%}}
    {{%- if message['role'] in ['system', 'developer'] -%}}
        {{{{- {system} -}}}}
    {{%- elif message['role'] == 'user' -%}}
        {{%- set ns.round = ns.round + 1 -%}}
        {{{{- {instruction} -}}}}
    {{%- elif message['role'] == 'assistant' -%}}
        {{{{- {answer} -}}}}
        {{%- set ns.begin = {again} -%}}
    {{%- else -%}}
        {{{{- raise_exception("the template {name} has no place for the role " ~ message['role']) -}}}}
    {{%- endif -%}}
{{%- endfor -%}}
"""


class Misplaced(ValueError):
    """A message that the template has no place for."""


@dataclass(frozen=True)
class Turns:
    """The strings of one template."""

    instruction: str
    """Around a question, up to where its answer begins; `{input}` is the question, `{round}` counts them from 1."""
    system: str = ""
    """Around a system text, written before the question of any turn that has one; empty: there is no place for one."""
    after_system: str = ""
    """Around a question that follows a system text, where that is not `instruction`."""
    suffix: str = ""
    """Directly after an answer, and learned with it."""
    suffix_as_eos: bool = False
    """Whether `suffix` ends the answer; else the tokenizer's eos_token does, and the next turn begins with bos_token."""
    separator: str = ""
    """After each answer, the last one included; not learned."""
    begin: str = ""
    """Where bos_token would stand, with a tokenizer that has none."""

    def pieces(self, contents: Iterable[tuple[str, str]], bos: str, eos: str) -> tuple[list[tuple[str, int | None]], str]:
        """(pieces of the answered turns, prompt of the last turn) of (role, content) pairs.

        A piece is (text, index of the answer it belongs to, or None). The prompt is empty if nothing is left to answer.
        Raises Misplaced for roles out of order.
        """
        bos = bos or self.begin
        found: list[tuple[str, int | None]] = []
        prompt, before, begin, rounds = "", "", True, 0
        for index, (role, content) in enumerate(contents):
            self._check(role, before)
            string, before = self._around(role, before), role
            if role == "assistant":
                found += self._turn(prompt, content, bos if begin else "", eos, index)
                prompt, begin = "", not self.suffix_as_eos
            else:
                rounds += role == "user"
                prompt += string.replace("{round}", str(rounds)).replace("{input}" if role == "user" else "{system}", content)
        if prompt and begin and bos:
            found.append((bos, None))
        return found, prompt

    def _around(self, role: str, before: str) -> str:
        if role != "user":
            return self.system
        return self.after_system if self.after_system and before in INSTRUCTIONS else self.instruction

    def _turn(self, prompt: str, answer: str, bos: str, eos: str, index: int) -> list[tuple[str, int | None]]:
        end = "" if self.suffix_as_eos else eos
        pieces = [(bos, None), (prompt, None), (answer + self.suffix, index), (end, index), (self.separator, None)]
        return [piece for piece in pieces if piece[0]]

    def _check(self, role: str, before: str) -> None:
        if role in INSTRUCTIONS and not self.system:
            raise Misplaced("has no place for a system text")
        if role not in FOLLOWS[before]:
            after = f"after a message of the role '{before}'" if before else "at the beginning"
            raise Misplaced(f"has no place for the role '{role}' {after}")

    def jinja(self, name: str) -> str:
        """The same text as a Jinja template; other programs tokenise it as a whole."""
        no_system = f'raise_exception("the template {name} has no place for a system text")'
        answer = ["message['content']", *_literal(self.suffix), *([] if self.suffix_as_eos else ["eos_token"]), *_literal(self.separator)]
        return JINJA.format(
            name=name,
            begin=f"bos_token or '{self.begin}'" if self.begin else "bos_token",
            system=_expression(self.system, "{system}") if self.system else no_system,
            instruction=self._question(),
            answer=" ~ ".join(answer),
            again="false" if self.suffix_as_eos else "true",
        )

    def _question(self) -> str:
        usual = _expression(self.instruction, "{input}")
        if not self.after_system:
            return usual
        follows = "loop.previtem is defined and loop.previtem['role'] in ['system', 'developer']"
        return f"({_expression(self.after_system, '{input}')}) if {follows} else ({usual})"


def _expression(string: str, content: str) -> str:
    """`string` as a Jinja expression, with its placeholders as variables."""
    before, _, after = string.partition(content)
    return " ~ ".join([*_rounds(before), "message['content']", *_rounds(after)])


def _rounds(string: str) -> Sequence[str]:
    first, *rest = string.split("{round}")
    return [*_literal(first), *(term for part in rest for term in ("ns.round", *_literal(part)))]


def _literal(string: str) -> list[str]:
    return [json.dumps(string, ensure_ascii=False)] if string else []
