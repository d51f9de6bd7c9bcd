"""How often each row of each source is seen: limit, repeat, weight; decided by the seed alone."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunestation.data.mixing import counts_are_needed, mix


def part(limit=None, repeat=1, weight=None):
    return SimpleNamespace(limit=limit, repeat=repeat, weight=weight)


def copies(parts, rows, seed=42) -> list[list[int]]:
    return [[found.of(row) for row in range(count)] for found, count in zip(mix(parts, rows, seed), rows, strict=True)]


def test_without_limit_and_weight_every_row_is_repeated_and_nothing_has_to_be_counted():
    assert copies([part(), part(repeat=3)], [2, 3]) == [[1, 1], [3, 3, 3]]
    assert not counts_are_needed([part(), part(repeat=3)])
    assert counts_are_needed([part(), part(limit=1)]) and counts_are_needed([part(weight=0.5)])


def test_a_limit_takes_that_many_rows_by_the_seed():
    (first,), (again,), (other,) = (copies([part(limit=10, repeat=2)], [100], seed) for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(first) == [0] * 90 + [2] * 10
    assert copies([part(limit=10)], [3]) == [[1, 1, 1]]


def test_weights_are_shares_and_the_largest_source_for_its_weight_is_seen_once():
    large, small = copies([part(weight=3), part(weight=1)], [300, 40])
    assert large == [1] * 300
    assert sum(small) == 100 and set(small) == {2, 3}


def test_a_limit_goes_before_the_weight():
    large, small = copies([part(weight=1, limit=50), part(weight=1)], [1000, 50])
    assert (sum(large), small) == (50, [1] * 50)


def test_a_source_without_rows_is_given_none():
    assert copies([part(weight=1), part(weight=1)], [0, 4]) == [[], [1] * 4]


sources = st.lists(st.tuples(st.integers(1, 60), st.floats(0.1, 10)), min_size=1, max_size=4)


@given(sources, st.integers(0, 2**32 - 1))
def test_whatever_the_weights_every_row_is_seen_and_the_shares_hold_within_half_a_row(pairs, seed):
    parts, rows = [part(weight=weight) for _, weight in pairs], [count for count, _ in pairs]
    found = copies(parts, rows, seed)
    scale = max(count / weight for count, weight in pairs)
    for (_, weight), seen in zip(pairs, found, strict=True):
        assert min(seen) >= 1 and max(seen) - min(seen) <= 1
        assert sum(seen) == pytest.approx(scale * weight, abs=0.5000001)
