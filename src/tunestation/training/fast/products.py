"""The large products of a step on a GPU: of the ways that give the same bits the fastest, found while it trains.

torch takes what cuBLAS's heuristic puts first. On an H200 (cuBLAS 13.1) others of the eight algorithms that it has for a product of
a 7B or 1.8B model's step take 4 to 10 % less time in their turn, and none sums in another order. A way is taken only if the rows that
are looked at equal torch's to the bit, so that what is learned does not depend on which one is the fastest today. Ways take turns in
the first steps: no time is lost, and each is seen at the clock rate that a step leaves the GPU. Where power is what limits that, a
faster algorithm draws more, and of what it saves a third is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from statistics import median

import torch

from tunestation.training.fast.cublaslt import Algorithm, Matmul

Arguments = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""x [T, K], weight [K, N] and out [T, N]."""
Way = Callable[..., bool]
"""Makes a product of `Arguments`; False if it cannot."""

LARGE = 2**36
"""Multiplications and additions from which a product is worth a search: it takes an H200 100 microseconds."""
LONG_SUM, MANY_ROWS = 16384, 16384
"""K and T from which columns are done in two halves: where power is what limits an H200, 683 and 668 TFLOP/s for K = 28800, N = 4096."""
TIMES = 5
"""How often each way is timed before the slower half is dropped."""
SAMPLE = 256
"""Rows that are compared."""

_ways: dict[tuple, Way] = {}


def by_torch(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> bool:
    """As torch does it."""
    torch.mm(x, weight, out=out)
    return True


def product(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """out [T, N] = x [T, K] @ weight [K, N]; any strides. Bits are torch's."""
    arguments = x, weight, out
    if not (large(x, weight) and _way(arguments)(*arguments)):
        by_torch(*arguments)


def large(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a search is worth it."""
    return 2 * x.numel() * weight.size(1) >= LARGE


def _way(arguments: Arguments) -> Way:
    """The one for products of this size; T may differ by a factor below 2 from that of the search."""
    x, weight, out = arguments
    sizes = x.size(0).bit_length(), x.size(1), weight.size(1)  # size() takes a tenth of the time that shape and len() take
    key = (x.get_device(), x.dtype, sizes, x.stride(), weight.stride(), out.stride())
    if key not in _ways:
        _ways[key] = Search(alike(arguments, ways(arguments)), Watch)
    return _ways[key]


def ways(arguments: Arguments) -> list[Way]:
    """All that are known, torch's first."""
    x = arguments[0]
    if len(x) >= MANY_ROWS and x.shape[1] >= LONG_SUM:
        return [_halved(way) for way in (by_torch, *_algorithms(_half(arguments)))]
    return [by_torch, *_algorithms(arguments)]


def _algorithms(arguments: Arguments) -> list[Way]:
    """cuBLASLt's own."""
    if not Matmul.possible(*arguments):
        return []
    matmul = Matmul(*arguments)
    return [_with(matmul, algorithm) for algorithm in matmul.algorithms()]


def _with(matmul: Matmul, algorithm: Algorithm) -> Way:
    return lambda *arguments: matmul.run(algorithm, *arguments)


def _half(arguments: Arguments, which: int = 0) -> Arguments:
    """A product of the first or second half of the columns of weight and out."""
    x, weight, out = arguments
    return x, weight.chunk(2, 1)[which], out.chunk(2, 1)[which]


def _halved(way: Way) -> Way:
    """The columns in two halves, one after the other."""
    return lambda *arguments: way(*_half(arguments)) and way(*_half(arguments, 1))


def alike(arguments: Arguments, known: list[Way]) -> list[Way]:
    """Those of `known` that give the bits of the first."""
    first, rows = known[0], slice(None, None, max(1, len(arguments[0]) // SAMPLE))
    first(*arguments)
    wanted = arguments[2][rows].clone(memory_format=torch.contiguous_format)
    return [first, *(way for way in known[1:] if way(*arguments) and _same(arguments[2][rows], wanted))]


def _same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Bit by bit, whatever the numbers are."""
    return torch.equal(found.contiguous().view(torch.uint8), wanted.view(torch.uint8))


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
    """A way that is one of several in turn and in the end the fastest: whenever each has its times, the slower half is dropped."""

    def __init__(self, known: list[Way], watch: Callable[[], Watch]):
        self.watch, self.draw = watch, Random(0)
        self._begin(known)

    def _begin(self, known: list[Way]) -> None:
        self.ways = known
        self.times: list[list[float]] = [[] for _ in known]
        """For each way, a row of x's share in each time."""
        self.turns: list[int] = []
        self.running: deque[tuple[int, int, Watch]] = deque()

    def __call__(self, *arguments: object) -> bool:
        if len(self.ways) > 1:
            self._read()
        if len(self.ways) == 1:
            return self.ways[0](*arguments)
        turn, watch = self._turn(), self.watch()
        done = self.ways[turn](*arguments)
        watch.stop()
        if done:
            self.running.append((turn, len(arguments[0]), watch))
        else:  # not with this T
            self._begin([way for way in self.ways if way is not self.ways[turn]])
        return done

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
