"""Which way a large product of the fast step is made: the fastest of those with torch's bits."""

import pytest
import torch

from tunestation.training.fast import products
from tunestation.training.fast.products import Search, alike, by_torch, ways


class Clock:
    """Ways that take known times, and watches that tell them once the GPU has `come` there."""

    def __init__(self, **times):
        self.times, self.made, self.last, self.come = times, [], None, True
        self.ways = [self.way(name) for name in times]

    def way(self, name):
        def run(*_):
            self.made.append(name)
            self.last = name
            return self.times[name] is not None

        return run

    def watch(self):
        return Stopped(self)


class Stopped:
    """A watch of `Clock`."""

    def __init__(self, clock):
        self.clock = clock

    def stop(self):
        times = self.clock.times[self.clock.last]
        self.time = times.pop(0) if isinstance(times, list) else times

    def read(self):
        return self.time if self.clock.come else None


def numbers(rows=6, columns=8):
    torch.manual_seed(0)
    return torch.randn(rows, columns)


def arguments(rows=6, columns=8, outputs=4):
    return numbers(rows, columns), numbers(columns, outputs), torch.empty(rows, outputs)


def search(clock, calls):
    found = Search(clock.ways, clock.watch)
    for _ in range(calls):
        found(torch.empty(10, 1))
    return found


def test_in_the_end_the_fastest_way_is_taken_alone():
    clock = Clock(torch=3.0, other=1.0, third=2.0, slowest=4.0)
    search(clock, 60)
    assert set(clock.made[:4]) == set(clock.times)
    assert set(clock.made[-20:]) == {"other"}


def test_one_slow_moment_does_not_decide():
    clock = Clock(torch=3.0, other=[50.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    search(clock, 12)
    assert clock.made[-1] == "other"


def test_times_count_by_rows():
    """A long micro-batch now and then falls to either way."""
    clock = Clock(torch=0.0, other=0.0)
    found = Search(clock.ways, clock.watch)
    for rows in (10, 1000, 10, 10, 1000, 1000, 10, 1000, 10, 10, 1000):
        clock.times = {"torch": 3.0 * rows, "other": 2.0 * rows}
        found(torch.empty(rows, 1))
    assert found.ways == clock.ways[1:]


def test_nothing_waits_for_times_that_the_gpu_has_not_come_to():
    clock = Clock(torch=2.0, other=1.0)
    clock.come = False
    found = search(clock, 30)
    assert set(clock.made[-4:]) == {"torch", "other"}
    clock.come = True
    found(torch.empty(10, 1))
    assert clock.made[-1] == "other"


def test_a_way_that_cannot_make_a_product_of_other_rows_is_dropped_and_says_so():
    clock = Clock(torch=2.0, other=None)
    found = Search(clock.ways, clock.watch)
    done = [found(torch.empty(10, 1)) for _ in range(6)]
    assert done.count(False) == 1 and clock.made.count("other") == 1


def test_a_product_that_its_way_cannot_make_is_torchs(monkeypatch):
    monkeypatch.setattr(products, "large", lambda *_: True)
    monkeypatch.setattr(products, "_way", lambda _: lambda *_: False)
    x, weight, out = arguments()
    products.product(x, weight, out)
    assert torch.equal(out, x @ weight)


def test_ways_with_other_bits_are_never_taken():
    def near(x, weight, out):
        out.copy_(torch.mm(x, weight) * (1 + 1e-6))
        return True

    def same(x, weight, out):
        out.copy_(torch.mm(x, weight))
        return True

    def unable(*_):
        return False

    assert alike(arguments(), [by_torch, near, same, unable]) == [by_torch, same]


def test_numbers_that_are_none_are_compared_by_their_bits():
    x, weight, out = arguments()
    x[0, 0] = float("nan")
    assert len(alike((x, weight, out), [by_torch, by_torch])) == 2


def test_rows_that_are_compared_lie_everywhere():
    def wrong_at_the_end(x, weight, out):
        torch.mm(x, weight, out=out)
        out[-5:] = 0
        return True

    assert len(alike(arguments(rows=1000), [by_torch, wrong_at_the_end])) == 1


@pytest.mark.parametrize("turned", [False, True])
def test_a_long_sum_over_many_rows_is_made_in_halves_with_the_same_result(monkeypatch, turned):
    monkeypatch.setattr(products, "LONG_SUM", 8)
    monkeypatch.setattr(products, "MANY_ROWS", 6)
    x, weight, _ = arguments(outputs=5)
    weight = weight.t().contiguous().t() if turned else weight
    (way,) = ways((x, weight, out := torch.full((6, 5), float("nan"))))
    assert way(x, weight, out)
    torch.testing.assert_close(out, x @ weight)


def test_small_products_are_not_searched():
    assert not products.large(torch.empty(16, 4096, device="meta"), torch.empty(4096, 4096, device="meta"))
    assert products.large(torch.empty(16384, 4096, device="meta"), torch.empty(4096, 4096, device="meta"))
