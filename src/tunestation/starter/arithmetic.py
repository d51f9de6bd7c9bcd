"""Which sums and differences exist, and which of them training must never see.

A held-out *family* is a pair of addends: all of ``a + b``, ``b + a``, ``(a + b) - a`` and
``(a + b) - b`` stay out of training, in digits and in words, in both languages. Nothing that
training says can then be turned round into a held-out fact.

Training also practises on larger numbers. A table of 231 sums is small enough to be learnt by
heart, and pairs missing from it are then guessed; among the larger ones the same digits meet
so often that adding them is the shorter way.
"""

LARGEST = 20
"""The largest number in a sum or difference that the test asks."""
LARGEST_PRACTICE = 50
"""The largest number in a sum or difference that training states."""
SMALL_REPEATS = 4
"""How often the table of small numbers stands beside the larger ones, which outnumber it."""


def is_held_out(first: int, second: int) -> bool:
    """Whether the family of these two addends is kept for testing.

    Zero and one are never held out: the number line ("what comes after 7?") states those.
    The quadratic rule spreads 14 of the 121 families over the table, so no row, column or
    diagonal of it is missing as a whole.
    """
    low, high = min(first, second), max(first, second)
    return low >= 2 and low + high <= LARGEST and (low * low + 3 * high) % 5 == 2


def _families(smallest: int, largest: int) -> list[tuple[int, int]]:
    """All ordered pairs of addends whose sum lies between the two bounds."""
    return [
        (first, total - first) for total in range(smallest, largest + 1) for first in range(total + 1)
    ]


def held_out_families() -> list[tuple[int, int]]:
    """The ordered pairs of addends that only the test asks about."""
    return [pair for pair in _families(0, LARGEST) if is_held_out(*pair)]


def small_families() -> list[tuple[int, int]]:
    """The other ordered pairs of addends up to ``LARGEST``."""
    return [pair for pair in _families(0, LARGEST) if not is_held_out(*pair)]


def training_families() -> list[tuple[int, int]]:
    """The ordered pairs of addends of training, the small ones repeated, then the larger ones."""
    return small_families() * SMALL_REPEATS + _families(LARGEST + 1, LARGEST_PRACTICE)
