"""Sizes of launches. Triton's own functions for these may run in kernels too, for which each call on the host takes 4 microseconds."""

from __future__ import annotations


def pieces(size: int, piece: int) -> int:
    """How many pieces cover `size`."""
    return -(-size // piece)


def power_of_2(size: int) -> int:
    """The smallest power of 2 that is not below `size`, at least 1."""
    return 1 << max(0, size - 1).bit_length()
