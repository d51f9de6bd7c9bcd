"""Which way a large product of the fast step is made: the fastest of those that give the same bits."""

import pytest
import torch

from tunestation.training.fast import products
from tunestation.training.fast.products import Search, alike, by_torch, ways


class Clock:
    """Ways that take known times, None if they cannot, and watches that tell them once the GPU has `come` there."""

    def __init__(self, **times):
        self.times, self.made, self.come = times, [], True
        self.ways = [self.way(name) for name in times]

    def way(self, name):
        def run(*_):
            self.made.append(name)
            return self.times[name] is not None

        return run

    def watch(self):
        return Stopped(self)


class Stopped:
    """A watch of `Clock`."""

    def __init__(self, clock):
        self.clock = clock

    def stop(self):
        times = self.clock.times[self.clock.made[-1]]
        self.time = times.pop(0) if isinstance(times, list) else times

    def read(self):
        return self.time if self.clock.come else None


def ones(rows=10):
    return torch.ones(rows, 1), torch.ones(1, 1), torch.ones(rows, 1)


def arguments(rows=6, columns=8, outputs=4):
    torch.manual_seed(0)
    return torch.randn(rows, columns), torch.randn(columns, outputs), torch.empty(rows, outputs)


def search(clock, calls):
    found = Search(clock.ways, clock.watch)
    for _ in range(calls):
        found(*ones())
    return found


def same(x, weight, out):
    out.copy_(torch.mm(x, weight))
    return True


def near(x, weight, out):
    out.copy_(torch.mm(x, weight) * (1 + 1e-6))
    return True


def test_in_the_end_the_fastest_way_is_taken_alone():
    clock = Clock(first=3.0, other=1.0, third=2.0, slowest=4.0)
    search(clock, 60)
    assert set(clock.made[4:8]) == set(clock.times)
    assert set(clock.made[-20:]) == {"other"}


def test_one_slow_moment_does_not_decide():
    clock = Clock(first=3.0, other=[50.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    search(clock, 12)
    assert clock.made[-1] == "other"


def test_times_count_by_rows():
    """A long micro-batch now and then falls to either way."""
    clock = Clock(first=0.0, other=0.0)
    found = Search(clock.ways, clock.watch)
    for rows in (10, 1000, 10, 10, 1000, 1000, 10, 1000, 10, 10, 1000):
        clock.times = {"first": 3.0 * rows, "other": 2.0 * rows}
        found(*ones(rows))
    assert found.ways == clock.ways[1:]


def test_nothing_waits_for_times_that_the_gpu_has_not_come_to():
    clock = Clock(first=2.0, other=1.0)
    clock.come = False
    found = search(clock, 30)
    assert set(clock.made[-4:]) == {"first", "other"}
    clock.come = True
    found(*ones())
    assert clock.made[-1] == "other"


def test_a_way_that_cannot_make_a_product_of_other_rows_is_dropped_and_another_makes_it():
    """One with the same bits, as torch's may not be."""
    clock = Clock(first=2.0, other=1.0)
    found = search(clock, 1)
    clock.times["other"] = None
    assert all(found(*ones(9)) for _ in range(6))
    assert found.ways == clock.ways[:1]


def test_if_no_way_can_make_a_product_it_is_said():
    clock = Clock(first=None, other=None)
    assert not any(search(clock, 1)(*ones(9)) for _ in range(6))


def test_a_product_that_its_way_cannot_make_is_torchs(monkeypatch):
    monkeypatch.setattr(products, "large", lambda *_: True)
    monkeypatch.setattr(products, "_search", lambda *_: lambda *_: False)
    x, weight, out = arguments()
    products.product(x, weight, out)
    assert torch.equal(out, x @ weight)


def test_what_is_added_to_a_product_is_not_changed():
    x, weight, out = arguments()
    added = torch.randn(6, 4)
    before = added.clone()
    products.product(x, weight, out, added)
    torch.testing.assert_close(out, x @ weight + before)
    assert torch.equal(added, before)


def test_ways_with_other_bits_are_never_taken():
    def unable(*_):
        return False

    assert alike(arguments(), [by_torch, near, same, unable]) == [by_torch, same]
    assert alike(arguments(), [unable, same]) is None


def test_numbers_that_are_none_are_compared_by_their_bits():
    x, weight, out = arguments()
    x[0, 0] = float("nan")
    assert len(alike((x, weight, out), [by_torch, by_torch])) == 2


def test_rows_that_are_compared_lie_everywhere():
    def wrong_at_the_end(x, weight, out):
        torch.mm(x, weight, out=out)
        out[-20:] = 0
        return True

    assert len(alike(arguments(rows=1000), [by_torch, wrong_at_the_end])) == 1


@pytest.mark.parametrize("telling", [slice(0), slice(1000, 1020)], ids=["B is zero", "few tokens are labelled"])
def test_before_numbers_can_tell_ways_apart_the_first_is_taken_and_later_compared(telling):
    """With zeros all ways give the same bits."""
    x, weight, out = arguments(rows=4096)
    zeros = torch.zeros_like(x)
    zeros[telling] = x[telling]
    found = Search([same, near], lambda: None)
    found(zeros, weight, out)
    assert torch.equal(out, zeros @ weight) and not found.compared
    found(x, weight, out)
    assert found.ways == [same] and torch.equal(out, x @ weight)


@pytest.fixture
def long_sums(monkeypatch):
    """Those of `arguments` are."""
    for name, value in {"LONG_SUM": 8, "MANY_ROWS": 6, "WIDE": 16}.items():
        monkeypatch.setattr(products, name, value)


@pytest.mark.usefixtures("long_sums")
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("more", [False, True])
def test_a_long_sum_over_many_rows_is_made_in_halves_with_the_same_result(turned, more):
    x, weight, _ = arguments(outputs=16)
    weight, added = weight.t().contiguous().t() if turned else weight, torch.randn(6, 16) if more else None
    (way,) = ways((x, weight, out := torch.full((6, 16), float("nan")), added))
    assert way is not by_torch and way(x, weight, out, added)
    torch.testing.assert_close(out, x @ weight + (added if more else 0))


@pytest.mark.usefixtures("long_sums")
@pytest.mark.parametrize("outputs", [15, 17, 18])
def test_halves_are_equal_and_not_narrow(outputs):
    assert ways(arguments(outputs=outputs)) == [by_torch]


def test_small_products_are_not_searched():
    assert not products.large(torch.empty(16, 4096, device="meta"), torch.empty(4096, 4096, device="meta"))
    assert products.large(torch.empty(16384, 4096, device="meta"), torch.empty(4096, 4096, device="meta"))
