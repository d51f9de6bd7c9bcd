"""Packing: nothing lost, nothing cut, nothing left to chance."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tunestation.data.packing import pack

CASES = st.integers(1, 300).flatmap(lambda capacity: st.tuples(st.just(capacity), st.lists(st.integers(1, capacity), max_size=200)))


@given(CASES, st.integers(0, 2**32 - 1))
def test_every_conversation_is_in_exactly_one_pack_and_no_pack_overflows(case, seed):
    capacity, lengths = case
    packs = pack(lengths, capacity, seed)
    assert sorted(index for one in packs for index in one) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in one) <= capacity for one in packs)


@given(CASES, st.integers(0, 2**32 - 1))
def test_equal_arguments_give_equal_packs(case, seed):
    capacity, lengths = case
    assert pack(lengths, capacity, seed) == pack(list(lengths), capacity, seed)


@given(CASES)
def test_at_most_one_pack_is_half_empty(case):
    capacity, lengths = case
    sums = [sum(lengths[index] for index in one) for one in pack(lengths, capacity, 0)]
    assert sum(total * 2 <= capacity for total in sums) <= 1


def test_the_best_fit_is_taken():
    packs = pack([6, 7, 3, 4], 10, 0)
    assert sorted(sorted(one) for one in packs) == [[0, 3], [1, 2]]


def test_another_seed_gives_another_order():
    lengths = [Random(0).randint(1, 100) for _ in range(200)]
    assert pack(lengths, 128, 1) != pack(lengths, 128, 2)


def test_packs_of_long_conversations_are_not_all_first():
    sizes = [len(one) for one in pack([90] * 50 + [5] * 500, 90, 3)]
    assert {1, 18} <= set(sizes)
    assert sizes != sorted(sizes)


def test_fifty_thousand_rows_are_packed_tight():
    chance = Random(0)
    lengths = [min(2048, max(1, int(chance.lognormvariate(5, 1)))) for _ in range(52_000)]
    assert sum(lengths) / (2048 * len(pack(lengths, 2048, 0))) > 0.999
