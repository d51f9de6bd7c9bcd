"""Writes the starter's training conversations and the two sets of questions that test it.

The same seed and count give the same bytes on every Python: the only source of chance is
``random.Random(seed).random()``, whose sequence Python guarantees, and nothing is iterated
whose order could differ.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from random import Random
from typing import Any

from tunestation.starter import arithmetic, chinese, english, facts
from tunestation.starter.facts import Slots
from tunestation.starter.intent import Intent, training_phrasings
from tunestation.starter.world import SYSTEM_TEXTS

Row = dict[str, Any]

LANGUAGES = {"en": english, "zh": chinese}

TOPIC_WEIGHTS: tuple[tuple[str, int], ...] = (
    ("greeting", 3), ("thanks", 2), ("goodbye", 2), ("how are you", 2), ("introduction", 8),
    ("sum", 18), ("difference", 18), ("number line", 10), ("number words", 2),
    ("colours", 7), ("days", 7), ("months", 8), ("capitals", 8), ("opposites", 5),
)
"""How often each topic is drawn. Sums and differences weigh most: they must be computed, not recalled."""

SOCIAL_TOPICS = ("greeting", "thanks", "goodbye", "how are you")
"""Topics whose questions are whole utterances; "Hi! Goodbye!" would be no question."""

ARITHMETIC = {"sum": facts.sums, "difference": facts.differences}
"""The topics that have held-out numbers, and what makes questions of pairs of addends."""

SYSTEM_SHARE = 0.1
"""Share of conversations that begin with a system message."""
SECOND_TURN_SHARE = 0.12
"""Chance of a second turn, and after a second of a third."""
WORDS_SHARE = 0.15
"""Share of sums and differences up to 20 whose question writes the numbers in words."""


def _pick(rng: Random, choices: Sequence[Any]) -> Any:
    """One of the choices; not ``rng.choice``, whose sequence may change between versions."""
    return choices[int(rng.random() * len(choices))]


def _topics() -> list[str]:
    """Each topic as often as its weight."""
    return [topic for topic, weight in TOPIC_WEIGHTS for _ in range(weight)]


def _by_topic(language: str) -> dict[str, list[Intent]]:
    """The intents of a language under their topics."""
    found: dict[str, list[Intent]] = {topic: [] for topic, _ in TOPIC_WEIGHTS}
    for intent in LANGUAGES[language].INTENTS:
        found[intent.topic].append(intent)
    return found


class _Speaker:
    """Asks and answers in one language; holds the tables so that they are built once."""

    def __init__(self, language: str) -> None:
        words = LANGUAGES[language]
        self.language = language
        self.prefixes: tuple[str, ...] = words.PREFIXES
        self.suffixes: tuple[str, ...] = words.SUFFIXES
        self.intents = _by_topic(language)
        self.phrasings = {i: training_phrasings(i, words.FRAMES) for i in words.INTENTS}
        self.facts = {i: facts.training_facts(i.facts, language) for i in words.INTENTS}

    def turn(self, rng: Random, topic: str) -> list[Row]:
        """One question and its answer."""
        intent = _pick(rng, self.intents[topic])
        slots = self._slots(rng, intent)
        question = _pick(rng, self.phrasings[intent]).format(**slots)
        if topic not in SOCIAL_TOPICS:
            question = self._decorate(rng, question)
        return [
            {"role": "user", "content": self._relax(rng, question)},
            {"role": "assistant", "content": _sentence(intent.answer.format(**slots))},
        ]

    def _slots(self, rng: Random, intent: Intent) -> Slots:
        slots = _pick(rng, self.facts[intent])
        if intent.topic in ARITHMETIC and rng.random() < WORDS_SHARE and facts.has_words(slots):
            return facts.in_words(slots, self.language)
        return slots

    def _decorate(self, rng: Random, question: str) -> str:
        """Sometimes puts a few words before or after the question."""
        chance = rng.random()
        if chance < 0.08:
            return _pick(rng, self.prefixes) + question
        if chance < 0.14:
            return question + _pick(rng, self.suffixes)
        return question

    def _relax(self, rng: Random, question: str) -> str:
        """Sometimes types as people do: a small first letter or only small ones, no full stop at the end."""
        chance = rng.random()
        if chance < 0.1:
            question = question.lower()
        elif chance < 0.2:
            question = question[0].lower() + question[1:]
        if rng.random() < 0.15:
            question = question.rstrip(".?!。？！") or question
        return question


def _sentence(answer: str) -> str:
    """The answer with a capital first letter."""
    return answer[0].upper() + answer[1:]


def world_rows(seed: int, count: int) -> Iterator[Row]:
    """``count`` training conversations, one to three turns each, in English and Chinese.

    No row states a held-out sum or difference, or asks in a held-out phrasing.
    """
    rng = Random(seed)
    topics = _topics()
    speakers = [_Speaker(language) for language in LANGUAGES]
    for _ in range(count):
        speaker = _pick(rng, speakers)
        messages: list[Row] = []
        if rng.random() < SYSTEM_SHARE:
            messages.append({"role": "system", "content": _pick(rng, SYSTEM_TEXTS[speaker.language])})
        messages += speaker.turn(rng, _pick(rng, topics))
        for _ in range(2):
            if rng.random() >= SECOND_TURN_SHARE:
                break
            messages += speaker.turn(rng, _pick(rng, topics))
        yield {"messages": messages}


def _question(intent: Intent, language: str, phrasing: str, slots: Slots) -> Row:
    """A test question with its only right answer."""
    return {
        "prompt": phrasing.format(**slots),
        "answer": _sentence(intent.answer.format(**slots)),
        "topic": intent.topic,
        "language": language,
    }


def held_out_numbers() -> list[Row]:
    """Every held-out sum and difference, twice in digits and every fourth in words, in each language.

    The phrasings are ones that training uses, so only the numbers are new.
    """
    rows = []
    for language, words in LANGUAGES.items():
        for intent in words.INTENTS:
            if intent.topic in ARITHMETIC:
                rows += _number_questions(intent, language)
    return rows


def _number_questions(intent: Intent, language: str) -> list[Row]:
    """The held-out facts of one intent, each in the next ones of its training phrasings."""
    held_out = ARITHMETIC[intent.topic](arithmetic.held_out_families())
    rows = []
    for place, slots in enumerate(held_out):
        for offset in (0, 7):
            phrasing = intent.training[(place + offset) % len(intent.training)]
            rows.append(_question(intent, language, phrasing, slots))
        if place % 4 == 0:
            spoken = intent.training[5 + place // 4 % 4]
            rows.append(_question(intent, language, spoken, facts.in_words(slots, language)))
    return rows


def _known_facts(intent: Intent, language: str) -> list[Slots]:
    """What the test of phrasings asks about: facts that training states, with small numbers only."""
    if intent.topic in ARITHMETIC:
        return ARITHMETIC[intent.topic](arithmetic.small_families())
    return facts.training_facts(intent.facts, language)


def held_out_phrasings() -> list[Row]:
    """Every held-out phrasing of every intent, with up to two facts that training states."""
    rows = []
    for language, words in LANGUAGES.items():
        for intent in words.INTENTS:
            known = _known_facts(intent, language)
            for place, phrasing in enumerate(intent.held_out):
                # Each phrasing starts elsewhere in the table, so that together they ask about many facts.
                shifted = known[5 * place + 3 :] or known
                rows += [_question(intent, language, phrasing, s) for s in facts.spread(shifted, 2)]
    return rows


def _fixed(questions: Callable[[], list[Row]]) -> Callable[[int, int], Iterator[Row]]:
    """A fixed list under the signature of a generator: the seed is ignored, count 0 means all."""
    return lambda seed, count: islice(questions(), count or None)


def everyday_rows(seed: int, count: int) -> Iterator[Row]:
    """Conversations of the world in which nobody asks the model who it is: what a new introduction must not push out."""
    introductions = {_sentence(intent.answer) for words in LANGUAGES.values() for intent in words.INTENTS if intent.topic == "introduction"}
    others = (row for row in world_rows(seed, 2 * count) if introductions.isdisjoint(turn["content"] for turn in row["messages"]))
    return islice(others, count)


def everything_else() -> list[Row]:
    """All held-out questions but those about the model itself."""
    return held_out_numbers() + [row for row in held_out_phrasings() if row["topic"] != "introduction"]


GENERATORS: dict[str, Callable[[int, int], Iterator[Row]]] = {
    "starter-world": world_rows,
    "starter-held-out-numbers": _fixed(held_out_numbers),
    "starter-held-out-phrasings": _fixed(held_out_phrasings),
    "starter-everyday": everyday_rows,
    "starter-everything-else": _fixed(everything_else),
}
"""The generators that a recipe can name."""
