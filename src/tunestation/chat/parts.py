"""The components of the page that change, and what its handlers are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import gradio as gr

from tunestation.chat.talks import Talk, Who, new_id
from tunestation.chat.words import WORDS
from tunestation.recipe.schema import Generation


@dataclass
class Parts:
    """The components of the page that change."""

    talk: gr.State
    kept: gr.BrowserState
    language: gr.Radio
    compare: gr.Checkbox
    box: gr.Textbox
    chats: dict[Who, gr.Chatbot]
    status: dict[Who, gr.HTML]
    base_column: gr.Column
    votes: gr.Row
    count: gr.HTML
    talks: gr.Radio
    rows: gr.Textbox
    """Exported rows on their way to the browser."""
    vote_buttons: dict[str, gr.Button]
    new: gr.Button
    export: gr.Button
    settings_button: gr.Button
    settings: dict[str, gr.Component] = field(default_factory=dict)
    """system, then the fields of Generation."""

    def translated(self, words: dict[str, str]) -> dict:
        """Every text that stands on the page from the start, in another language; by component, for a handler to return."""
        changes = {button: gr.Button(words[f"better_{name}"]) for name, button in self.vote_buttons.items()}
        for name, part in self.settings.items():
            changes[part] = type(part)(label=words[name], info=words[f"{name}_info"])
        for who, chat in self.chats.items():
            changes[chat] = gr.Chatbot(label=words[who], placeholder=words["invitation"])
        return changes | {
            self.compare: gr.Checkbox(label=words["compare"]),
            self.box: gr.Textbox(placeholder=words["message"]),
            self.talks: gr.Radio(label=words["conversations"]),
            self.new: gr.Button(words["new"]),
            self.export: gr.Button(words["export"]),
            self.settings_button: gr.Button(words["settings"]),
        }


def new_browser() -> dict:
    """What a browser keeps at first: a name of its own, and no conversation."""
    return {"browser": new_id(), "talk": ""}


class Context(NamedTuple):
    """What every handler is given of the page."""

    talk: Talk
    kept: dict
    """What the browser keeps: its own name, and the conversation it saw last."""
    compare: bool
    language: str
    system: str
    settings: Sequence[float]
    """In the order of Generation."""

    @classmethod
    def of(cls, values: Sequence) -> Context:
        """From the values of the components, in order."""
        talk, kept, *others = values
        # an example may be clicked before the page has asked its browser
        return cls(talk, kept or new_browser(), *others[:3], others[3:])

    @property
    def words(self) -> dict[str, str]:
        """The page's texts."""
        return WORDS[self.language]

    def generation(self) -> Generation:
        """How answers are drawn; sliders give whole numbers as int or float."""
        defaults = Generation()
        return Generation(**{name: type(value)(given) for (name, value), given in zip(defaults, self.settings, strict=True)})
