"""The slots of every kind of question: one dictionary for each fact, in a fixed order.

``a`` and ``b`` are numbers as the question writes them (digits or words); ``x``, ``y``, ``z``
and ``w`` are the numbers of the answer, always in digits.
"""

from collections.abc import Callable, Iterator

from tunestation.starter import arithmetic
from tunestation.starter.world import (
    CAPITALS,
    COLOURS,
    DAYS,
    MIXTURES,
    MONTHS,
    NUMBER_WORDS,
    OPPOSITES_CHINESE,
    OPPOSITES_ENGLISH,
    ORDINALS,
)

Slots = dict[str, str]

LANGUAGES = ("en", "zh")


def number_word(number: int, language: str) -> str:
    """``7`` as "seven" or "七"."""
    return NUMBER_WORDS[number][LANGUAGES.index(language)]


def _pair(first: int, second: int, result: int) -> Slots:
    """Slots of a question about two numbers, written in digits."""
    return {"a": str(first), "b": str(second), "x": str(first), "y": str(second), "z": str(result)}


def has_words(slots: Slots) -> bool:
    """Whether both numbers of a sum or difference have a word of their own."""
    return all(int(slots[slot]) < len(NUMBER_WORDS) for slot in ("a", "b"))


def in_words(slots: Slots, language: str) -> Slots:
    """The same sum or difference asked with its numbers in words; the answer stays in digits."""
    return {**slots, **{slot: number_word(int(slots[slot]), language) for slot in ("a", "b")}}


def sums(families: list[tuple[int, int]]) -> list[Slots]:
    """The sum ``a + b`` of each pair of addends."""
    return [_pair(a, b, a + b) for a, b in families]


def differences(families: list[tuple[int, int]]) -> list[Slots]:
    """The difference ``(a + b) - a`` of each pair of addends."""
    return [_pair(a + b, a, b) for a, b in families]


def _next_numbers(language: str) -> list[Slots]:
    return [{"a": str(n), "x": str(n), "z": str(n + 1)} for n in range(arithmetic.LARGEST)]


def _previous_numbers(language: str) -> list[Slots]:
    return [{"a": str(n + 1), "x": str(n + 1), "z": str(n)} for n in range(arithmetic.LARGEST)]


def _comparisons(language: str) -> list[Slots]:
    numbers = range(arithmetic.LARGEST + 1)
    pairs = ((a, b) for a in numbers for b in numbers if a != b)
    return [{"a": str(a), "b": str(b), "z": str(max(a, b)), "w": str(min(a, b))} for a, b in pairs]


def _counting(language: str) -> list[Slots]:
    comma = {"en": ", ", "zh": "、"}[language]
    spans = ((a, b) for a in range(arithmetic.LARGEST) for b in range(a + 1, arithmetic.LARGEST + 1))
    return [
        {"a": str(a), "b": str(b), "row": comma.join(str(n) for n in range(a, b + 1))}
        for a, b in spans
        if b - a <= 10
    ]


def _number_words(language: str) -> list[Slots]:
    return [{"x": str(n), "word": number_word(n, language)} for n in range(len(NUMBER_WORDS))]


def _colours(language: str) -> list[Slots]:
    column = 2 * LANGUAGES.index(language)
    return [{"thing": row[column], "colour": row[column + 1]} for row in COLOURS]


def _mixtures(language: str) -> list[Slots]:
    column = 3 * LANGUAGES.index(language)
    names = (row[column : column + 3] for row in MIXTURES)
    return [
        {"first": first, "second": second, "colour": colour}
        for one, two, colour in names
        for first, second in ((one, two), (two, one))
    ]


def _neighbours(names: list[str], slot: str) -> list[Slots]:
    """Each name of a cycle with the one before it and the one after it."""
    return [
        {slot: name, "previous": names[place - 1], "next": names[(place + 1) % len(names)]}
        for place, name in enumerate(names)
    ]


def _days(language: str) -> list[Slots]:
    return _neighbours([row[LANGUAGES.index(language)] for row in DAYS], "day")


def _months(language: str) -> list[Slots]:
    return _neighbours([row[LANGUAGES.index(language)] for row in MONTHS], "month")


def _month_lengths(language: str) -> list[Slots]:
    return [{"month": row[LANGUAGES.index(language)], "length": row[2]} for row in MONTHS]


def _month_places(language: str) -> list[Slots]:
    column = LANGUAGES.index(language)
    rows = zip(MONTHS, ORDINALS, strict=True)
    return [{"month": month[column], "place": place[column]} for month, place in rows]


def _capitals(language: str) -> list[Slots]:
    column = 2 * LANGUAGES.index(language)
    return [{"country": row[column], "capital": row[column + 1]} for row in CAPITALS]


def _opposites(language: str) -> list[Slots]:
    pairs = {"en": OPPOSITES_ENGLISH, "zh": OPPOSITES_CHINESE}[language]
    both_ways = ((w, o) for one, two in pairs for w, o in ((one, two), (two, one)))
    return [{"word": word, "opposite": opposite} for word, opposite in both_ways]


_TABLES: dict[str, Callable[[str], list[Slots]]] = {
    "none": lambda language: [{}],
    "sums": lambda language: sums(arithmetic.training_families()),
    "differences": lambda language: differences(arithmetic.training_families()),
    "next_number": _next_numbers,
    "previous_number": _previous_numbers,
    "comparisons": _comparisons,
    "counting": _counting,
    "number_words": _number_words,
    "colours": _colours,
    "mixtures": _mixtures,
    "next_day": _days,
    "previous_day": _days,
    "next_month": _months,
    "previous_month": _months,
    "month_lengths": _month_lengths,
    "month_places": _month_places,
    "capitals": _capitals,
    "opposites": _opposites,
}


def training_facts(table: str, language: str) -> list[Slots]:
    """The facts of a table that training may state."""
    return _TABLES[table](language)


def spread(facts: list[Slots], count: int) -> Iterator[Slots]:
    """``count`` facts at even distances through a table, the whole table if it is smaller."""
    step = max(1, len(facts) // count)
    yield from facts[::step][:count]
