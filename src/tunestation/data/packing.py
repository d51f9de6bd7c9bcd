"""Packing: whole conversations laid into rows of a fixed size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from random import Random


def pack(lengths: Sequence[int], capacity: int, seed: int) -> list[list[int]]:
    """Best-fit decreasing: indices of `lengths` grouped into packs of at most `capacity` tokens.

    Every index is in exactly one pack; nothing is cut. The longest conversation goes first, each into the pack
    in which it leaves the least room. That lays long beside long, so the packs are shuffled afterwards.
    Every length must lie between 1 and `capacity`. Equal arguments give equal packs.
    """
    order = Random(seed)
    indices = list(range(len(lengths)))
    order.shuffle(indices)
    indices.sort(key=lengths.__getitem__, reverse=True)
    packs: list[list[int]] = []
    by_room: dict[int, list[int]] = defaultdict(list)
    rooms = 0  # bit r is set while some pack has room for exactly r tokens: the best fit is one shift and one mask
    for index in indices:
        length = lengths[index]
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, chosen = capacity, len(packs)
            packs.append([])
        packs[chosen].append(index)
        by_room[room - length].append(chosen)
        rooms |= 1 << (room - length)
    order.shuffle(packs)
    return packs
