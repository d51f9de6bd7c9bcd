"""Built-in chat templates. Each is a Jinja file beside this one, in the form that `apply_chat_template` reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Template:
    """How the turns of a conversation are written as one text."""

    name: str
    """The recipe's `template`."""
    stop: str
    """The token that ends an answer."""

    @property
    def jinja(self) -> str:
        """The template's source."""
        return (Path(__file__).parent / f"{self.name}.jinja").read_text(encoding="utf-8")


TEMPLATES = {
    template.name: template
    for template in (
        Template("chatml", stop="<|im_end|>"),
        Template("internlm2_chat", stop="<|im_end|>"),
    )
}
"""Name -> template."""
