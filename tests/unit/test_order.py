"""Which pack is seen when."""

from collections import Counter

import pytest

from tunestation.training.order import draw, tokens_by_step


def test_the_order_is_the_same_on_every_machine():
    assert draw(5, 2, 5, 42).visits == (2, 3, 0, 1, 4, 4, 2, 1, 3, 0)


def test_every_pack_is_seen_once_an_epoch():
    order = draw(12, 3, 4, 7)
    assert Counter(order.visits) == dict.fromkeys(range(12), 3)
    for epoch in range(3):
        assert sorted(order.visits[12 * epoch : 12 * epoch + 12]) == list(range(12))
    assert (order.steps, order.left_out) == (9, 0)


def test_epochs_have_different_orders_and_so_have_seeds():
    order = draw(20, 2, 4, 7).visits
    assert order[:20] != order[20:]
    assert order != draw(20, 2, 4, 8).visits


def test_visits_that_make_no_whole_step_are_left_out_and_counted():
    order = draw(55, 3, 4, 42)  # the career coach of the tutorials: 55 packs of 512 tokens
    assert (order.steps, len(order.visits), order.left_out) == (41, 164, 1)


@pytest.mark.parametrize(("epochs", "visits"), [(0.5, 8), (1.5, 24), (0.01, 4)])
def test_a_fraction_of_an_epoch_sees_that_share_of_the_packs_but_at_least_one_step(epochs, visits):
    assert len(draw(16, epochs, 4, 1).visits) == visits


def test_fewer_packs_than_a_step_holds_are_seen_again_until_it_is_full():
    order = draw(3, 1, 8, 1)
    assert (order.steps, order.left_out, len(order.visits)) == (1, 0, 8)
    assert Counter(order.visits).most_common()[-1][1] >= 2


def test_a_longer_training_begins_like_a_shorter_one():
    assert draw(10, 4, 5, 3).visits[:10] == draw(10, 1, 5, 3).visits


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_each_step_holds_the_same_packs_for_every_number_of_processes(world):
    order, batch = draw(32, 2, 8, 5), 8
    share = batch // world
    shared = [
        [order.visits[step * batch + rank * share : step * batch + (rank + 1) * share] for rank in range(world)]
        for step in range(order.steps)
    ]
    assert [sorted(sum(step, ())) for step in shared] == [sorted(order.visits[at : at + batch]) for at in range(0, 64, batch)]


def test_tokens_are_counted_step_by_step_without_padding():
    order = draw(4, 1, 2, 0)
    lengths = [1, 10, 100, 1000]
    found = tokens_by_step(order, lengths, 2)
    assert (len(found), sum(found)) == (2, 1111)
    assert found[0] == lengths[order.visits[0]] + lengths[order.visits[1]]
