"""Built-in chat templates: how the turns of a conversation are written as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from tunestation.data.templates.turns import Turns

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Template:
    """One template that a recipe may name."""

    name: str
    """The recipe's `template`."""
    stop: str | None
    """The token that ends an answer; None is the tokenizer's own eos_token."""
    jinja: str
    """The text for `apply_chat_template`."""
    turns: Turns | None = None
    """Strings that are tokenised piece by piece; None: the rendered text is cut at the answers."""


def _all() -> Iterator[Template]:
    yield Template("chatml", "<|im_end|>", (HERE / "chatml.jinja").read_text(encoding="utf-8"))
    strings = YAML(typ="safe")
    for name, fields in (strings.load(HERE / "own.yaml") | strings.load(HERE / "xtuner.yaml")).items():
        turns = Turns(**fields)
        yield Template(name, turns.suffix if turns.suffix_as_eos else None, turns.jinja(name), turns)


TEMPLATES = {template.name: template for template in _all()}
"""Name -> template: our own (chatml, llama2), and XTuner's under their names there."""
BY_JINJA = {template.jinja: template for template in TEMPLATES.values()}
"""A tokenizer carries its template as Jinja text; this finds the built-in one back."""
