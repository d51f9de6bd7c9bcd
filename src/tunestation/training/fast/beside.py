"""A stream beside the step's own, for sums that nothing waits for before a layer's backward pass ends: adapters' gradients.

They read much and multiply little, so that a GPU fills with them what the large products leave idle when they begin and end. On an H200 a
step of the 1.8B shape takes 0.4 % less time so (bench/results/2026-12-01-h200-added.json).
"""

from __future__ import annotations

from collections.abc import Callable

import torch


class Beside:
    """Shared by all layers. What work has been given is held until `join`: else its memory would be another's while it is still read."""

    def __init__(self) -> None:
        self.stream: torch.cuda.Stream | None = None
        self.held: list[tuple] = []

    def run(self, work: Callable[..., None], first: torch.Tensor, *others: object) -> None:
        """`work` on these, after all that was begun before; on a CPU at once."""
        if not first.is_cuda:
            return work(first, *others)
        self.stream = self.stream or torch.cuda.Stream(first.device)
        self.stream.wait_stream(torch.cuda.current_stream(first.device))
        self.held.append((first, *others))
        with torch.cuda.stream(self.stream):
            work(first, *others)

    def join(self) -> None:
        """What is begun from now on comes after all such work."""
        if self.held:
            torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)
            self.held.clear()
