"""Nodes go on from the newest checkpoint that every one of them has."""

import threading
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given, settings
from hypothesis import strategies as st

from tunestation.training.checkpoints import newest_common


def agreed(nodes: list[set[int]]) -> list[int]:
    """What each node finds, all asking at the same time; `least` works as an all-reduce does, and waits for everyone."""
    given_now, barrier = [0] * len(nodes), threading.Barrier(len(nodes), timeout=300)

    def find(node: int) -> int:
        def least(number: int) -> int:
            given_now[node] = number
            barrier.wait()
            smallest = min(given_now)
            barrier.wait()
            return smallest

        return newest_common(nodes[node], least)

    with ThreadPoolExecutor(len(nodes)) as pool:
        return list(pool.map(find, range(len(nodes))))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sets(st.integers(1, 12), max_size=6), min_size=1, max_size=4))
def test_every_node_finds_the_same_and_newest(nodes):
    assert agreed(nodes) == [max(set.intersection(*nodes), default=0)] * len(nodes)


def test_a_node_that_was_killed_before_its_newest_holds_the_others_back():
    assert agreed([{4, 8}, {4}]) == [4, 4]
    assert agreed([{8}, {4}]) == [0, 0]
