"""Which pack is seen when: one list, drawn before training, the same for every number of GPUs. No torch here."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Order:
    """The visits of a whole training, in order."""

    visits: tuple[int, ...]
    """Index of the pack of each visit; `global_batch_size` of them make a step."""
    steps: int
    """Optimizer steps."""
    left_out: int
    """Visits of the last epoch that would have made an incomplete step."""


def steps(packs: int, epochs: float, global_batch_size: int) -> int:
    """Optimizer steps: epochs x packs / global_batch_size, rounded down, at least 1."""
    return max(1, round(packs * epochs) // global_batch_size)


def draw(packs: int, epochs: float, global_batch_size: int, seed: int) -> Order:
    """Shuffle each epoch by `seed`; as many as make whole `steps`."""
    wanted, count = max(1, round(packs * epochs)), steps(packs, epochs, global_batch_size)
    needed = count * global_batch_size
    visits: list[int] = []
    epoch = 0
    while len(visits) < needed:
        visits += random.Random(f"{seed}/{epoch}").sample(range(packs), packs)
        epoch += 1
    return Order(tuple(visits[:needed]), count, max(0, wanted - needed))


def tokens_by_step(order: Order, lengths: Sequence[int], global_batch_size: int) -> list[int]:
    """Real tokens seen in each step, without padding."""
    seen = [lengths[visit] for visit in order.visits]
    return [sum(seen[start : start + global_batch_size]) for start in range(0, len(seen), global_batch_size)]
