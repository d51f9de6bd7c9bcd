"""The large products of a step on a GPU: of cuBLASLt's algorithms that give the same bits the fastest, found while it trains.

torch takes what cuBLAS's heuristic puts first. On an H200 (cuBLAS 13.1) others of the eight algorithms that it has for a product of
a 7B or 1.8B model's step take 4 to 10 % less time in their turn. None of them splits the sum, so all sum in one order, for any number of
rows, and what is learned does not depend on which one is the fastest today; each is compared with the first, bit by bit, before it is
taken. They take turns in the first steps, so that each is seen at the clock rate that a step leaves the GPU. Where power is what limits
that, a faster algorithm draws more, and of what it saves a third is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from random import Random
from statistics import median

import torch

from tunestation.training.fast.cublaslt import Matmul

Arguments = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]
"""x [T, K], weight [K, N], out [T, N], and what is added to the product [T, N], if anything."""
Way = Callable[..., bool]
"""Makes a product of `Arguments`; False if it cannot."""

LARGE = 2**36
"""Multiplications and additions from which a product is worth a search: it takes an H200 100 microseconds."""
LONG_SUM, MANY_ROWS, WIDE = 16384, 16384, 4096
"""K, T and N from which columns are done in two halves: where power is what limits an H200, 683 and 668 TFLOP/s for K = 28800,
N = 4096; with N = 2048 and K = 16512 the whole gives 694, its halves 683."""
TIMES = 5
"""How often each way is timed before the slower half is dropped."""
SAMPLE, TELLING = 64, 8
"""Rows that are compared, and how many of them must not be zero, as those of unlabelled tokens or with B = 0 are."""

_searches: dict[tuple, Search] = {}


def by_torch(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, added: torch.Tensor | None = None) -> bool:
    """As torch does it."""
    torch.mm(x, weight, out=out) if added is None else torch.addmm(added, x, weight, out=out)
    return True


def product(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, added: torch.Tensor | None = None) -> None:
    """out [T, N] = x [T, K] @ weight [K, N], plus `added` [T, N], summed before it is rounded; any strides."""
    if not (large(x, weight) and _search(x, weight, out, added)(x, weight, out, added)):
        by_torch(x, weight, out, added)


def large(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a search is worth it."""
    return 2 * x.numel() * weight.size(1) >= LARGE


def _search(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, added: torch.Tensor | None) -> Search:
    """The one for products of this size; T may differ by a factor below 2 from that of its beginning."""
    sizes = x.size(0).bit_length(), x.size(1), weight.size(1)  # size() takes a tenth of the time that shape and len() take
    key = (x.get_device(), x.dtype, sizes, x.stride(), weight.stride(), out.stride(), added is not None and added.stride())
    if key not in _searches:
        _searches[key] = Search(ways((x, weight, out, added)), Watch)
    return _searches[key]


def ways(arguments: Arguments) -> list[Way]:
    """All that are known and sum in one order; torch's where there is no other."""
    x, weight, *_ = arguments
    columns = weight.size(1)
    if x.size(0) >= MANY_ROWS and x.size(1) >= LONG_SUM and columns >= WIDE and columns % 16 == 0:
        return [_halved(way) for way in _whole(_half(arguments))]
    return _whole(arguments)


def _whole(arguments: Arguments) -> list[Way]:
    """cuBLASLt's algorithms, or torch's product where there are none."""
    if not Matmul.possible(*arguments):
        return [by_torch]
    matmul = Matmul(*arguments)
    return [partial(matmul.run, algorithm) for algorithm in matmul.algorithms()] or [by_torch]


def _half(arguments: Arguments, which: int = 0) -> Arguments:
    """A product of the first or second half of the columns of weight, out and what is added."""
    x, *others = arguments
    return x, *(None if each is None else each.chunk(2, 1)[which] for each in others)


def _halved(way: Way) -> Way:
    """The columns in two halves, one after the other."""
    return lambda *arguments: way(*_half(arguments)) and way(*_half(arguments, 1))


def alike(arguments: Arguments, known: list[Way]) -> list[Way] | None:
    """Those of `known` that give the bits of the first; None if these numbers cannot tell."""
    rows = slice(None, None, -(-arguments[0].size(0) // SAMPLE))
    found = arguments[2][rows].view(torch.int16 if arguments[2].element_size() == 2 else torch.int32)  # bits, whatever the numbers are
    x, weight, out, *added = arguments
    arguments = x, weight, out, *(each if each is None else torch.zeros_like(each) for each in added)  # it would hide them
    if not known[0](*arguments) or found.any(1).sum() < min(TELLING, len(found)):
        return None
    wanted = found.clone()
    return [known[0], *(way for way in known[1:] if way(*arguments) and torch.equal(found, wanted))]


class Watch:
    """Runs from when it is made; nothing waits for it."""

    def __init__(self) -> None:
        self.begin, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.begin.record()

    def stop(self) -> None:
        """The time is up once the GPU has come to here."""
        self.end.record()

    def read(self) -> float | None:
        """Milliseconds of GPU time; None before it has come there."""
        return self.begin.elapsed_time(self.end) if self.end.query() else None


class Search:
    """A way that is one of several in turn and in the end the fastest: whenever each has its times, the slower half is dropped.

    Before numbers have shown which of them are `alike` it is the first.
    """

    def __init__(self, known: list[Way], watch: Callable[[], Watch]):
        self.watch, self.draw, self.compared = watch, Random(0), len(known) == 1
        self._begin(known)

    def _begin(self, known: list[Way]) -> None:
        self.ways = known
        self.times: list[list[float]] = [[] for _ in known]
        """For each way, a row of x's share in each time."""
        self.turns: list[int] = []
        self.running: deque[tuple[int, int, Watch]] = deque()

    def __call__(self, *arguments: torch.Tensor) -> bool:
        if not self.compared:
            self._compare(arguments)
        elif len(self.ways) > 1:
            self._read()
        if not self.compared or len(self.ways) == 1:
            return self.ways[0](*arguments)
        return self._timed(arguments)

    def _timed(self, arguments: Arguments) -> bool:
        turn, watch = self._turn(), self.watch()
        if self.ways[turn](*arguments):
            watch.stop()
            self.running.append((turn, arguments[0].size(0), watch))
            return True
        self._begin([way for way in self.ways if way is not self.ways[turn]])  # not with this T
        return self(*arguments)

    def _compare(self, arguments: Arguments) -> None:
        found = alike(arguments, self.ways)
        if found:
            self.compared = True
            self._begin(found)

    def _turn(self) -> int:
        """In no fixed order, as layers are."""
        if not self.turns:
            self.turns = self.draw.sample(range(len(self.ways)), len(self.ways))
        return self.turns.pop()

    def _read(self) -> None:
        while self.running and (time := self.running[0][2].read()) is not None:
            turn, rows, _ = self.running.popleft()
            self.times[turn].append(time / rows)
        if min(map(len, self.times)) >= TIMES:
            order = sorted(range(len(self.ways)), key=lambda turn: median(self.times[turn]))
            self._begin([self.ways[turn] for turn in order[: len(order) // 2]])
