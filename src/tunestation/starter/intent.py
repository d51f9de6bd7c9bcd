"""What one kind of question is: its ways of asking, its one way of answering."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Intent:
    """One kind of question in one language.

    Every phrasing of an intent has the same answer, so that exact match is a fair measure.
    Braces in phrasings and in the answer name the slots of the facts of ``facts``.
    """

    topic: str
    """Under which heading results are reported."""
    facts: str
    """Name of the table in ``facts.py`` that fills the slots."""
    answer: str
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    """Phrasings that only the test asks."""
    nouns: tuple[str, ...] = ()
    """Noun phrases that every frame of the language takes: "the capital of {country}"."""


def training_phrasings(intent: Intent, frames: tuple[str, ...]) -> tuple[str, ...]:
    """The phrasings that training may use: the intent's own, and its nouns in each frame."""
    framed = tuple(frame.format(noun=noun) for noun in intent.nouns for frame in frames)
    return intent.training + framed
