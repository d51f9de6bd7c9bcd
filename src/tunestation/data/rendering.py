"""A chat template written in Jinja: the rendered conversation is cut where answers begin and end."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunestation.data.templates import BY_JINJA
from tunestation.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Cut = tuple[str, int | None]
"""A text, and the index of the message that it answers with; None for what stands between answers."""


def label(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template in messages."""
    known = BY_JINJA.get(tokenizer.chat_template)
    return f"the chat template ({known.name})" if known else "the chat template (the model's or your own)"


def check_compiles(jinja: str, file: str) -> None:
    """Raises InputError, placed at the line of `file`, if its text `jinja` is no template."""
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        _compile_jinja_template(jinja)  # with the tags and filters that it will have when it is rendered
    except TemplateSyntaxError as error:
        raise InputError(f"is no Jinja template: {error.message.rstrip('.')}.", f"{file}:{error.lineno}", "Mend this line.") from None


def remedy(where: str) -> str:
    """What to do where a template refuses the conversation at `where`, which is empty unless it is a row of the data."""
    return "Change the row, or name another template." if where else "Mend the template, or name another one."


def render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict], prompt: bool, where: str = "", tools: Sequence[dict] = ()) -> str:
    """The turns as the chat template writes them; with `prompt`, up to where the next answer begins.

    Raises InputError, placed at `where`, if the template refuses them or fails.
    """
    try:
        return tokenizer.apply_chat_template(list(turns), tools=list(tools) or None, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # a template is a program of its own: what it calls may raise anything
        what = f"{label(tokenizer)} refuses this conversation: {error}{_line_of(error)}."
        raise InputError(what, where, remedy(where)) from None


def _line_of(error: Exception) -> str:
    """The line of the template that raised it, in words: Jinja calls a template without a file by one of these names."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename in ("<template>", "<unknown>")]
    return f" (line {lines[-1]} of it)" if lines else ""


class Rendered:
    """Cuts conversations by rendering them up to each answer and after it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tools: Sequence[dict] = (), where: str = ""):
        self.tokenizer = tokenizer
        self.tools = tools
        self.where = where

    def prompt(self, turns: Sequence[dict]) -> list[Cut]:
        """Everything up to where the answer to the last turn begins."""
        found, text, after = self._answered(turns)
        prompt = self._render(turns, prompt=True)
        self._continues(text, prompt)
        return [*found, (after + prompt[len(text) :], None)]

    def answered(self, turns: Sequence[dict]) -> list[Cut]:
        """Everything up to the end of the last answer, and what stands after its stop token."""
        found, _, after = self._answered(turns)
        return [*found, (after, None)] if after else found

    def _render(self, turns: Sequence[dict], prompt: bool) -> str:
        return render(self.tokenizer, turns, prompt, self.where, self.tools)

    def _answered(self, turns: Sequence[dict]) -> tuple[list[Cut], str, str]:
        """The pieces, the text rendered so far, and its end after the stop token, which is in no piece yet."""
        found: list[Cut] = []
        text = after = ""
        for index, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            prompt = self._render(turns[:index], prompt=True)
            self._continues(text, prompt)
            whole = self._render(turns[: index + 1], prompt=False)
            self._continues(prompt, whole)
            answer, rest = self._split_at_stop(whole[len(prompt) :])
            found += [(after + prompt[len(text) :], None), (answer, index)]
            text, after = whole, rest
        return found, text, after

    def _continues(self, before: str, after: str) -> None:
        if after.startswith(before):
            return
        pairs = enumerate(zip(before, after, strict=False))
        at = next((index for index, (old, new) in pairs if old != new), min(len(before), len(after)))
        what = (
            f"{label(self.tokenizer)} writes an earlier turn differently once a later one follows, so training and use would not agree: "
            f"{before[at : at + 40]!r} becomes {after[at : at + 40]!r}."
        )
        raise InputError(what, self.where, "Name another template, as 'chatml', or use conversations of one question and one answer.")

    def _split_at_stop(self, turn: str) -> tuple[str, str]:
        """The answer with its stop token, and the white space after it."""
        stop = self.tokenizer.eos_token
        end = turn.rfind(stop) + len(stop)
        if stop in turn and not turn[end:].strip():
            return turn[:end], turn[end:]
        end_of_answer = f"{label(self.tokenizer)} ends an answer with {turn[-20:]!r}"
        what = f"{end_of_answer}: the stop token {stop!r} is never trained, and answers would never end."
        raise InputError(what, self.where, "Name a template whose stop token is the tokenizer's, or mend the tokenizer's eos_token.")
