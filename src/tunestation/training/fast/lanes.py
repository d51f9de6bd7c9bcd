"""Copies between GPU and host memory that run beside the products. All streams and events of the fast step are here.

The rules, as torch's notes on CUDA semantics have them: a stream sees what another has done only if it waits for it; memory that a stream
still reads must not be given back, so whoever copies keeps both tensors until the computing stream has waited for the copy; host memory
must be pinned, or a copy waits for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

Pair = tuple[torch.Tensor, torch.Tensor]
"""Where to, and what."""


class Lane(Protocol):
    """One direction of copies, each done after those before it."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> object:
        """Begin to copy, after all that the computing stream was given so far; returns a ticket that holds both tensors."""

    def wait(self, ticket: object) -> None:
        """Let what the computing stream is given from now on come after the copy. Both tensors may then be dropped."""


@dataclass
class _Ticket:
    tensors: Pair
    done: torch.cuda.Event | None = None


class DirectLane:
    """On a CPU: a copy is done when it is asked for."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> _Ticket:
        """As `Lane.copy`."""
        target.copy_(source)
        return _Ticket((target, source))

    def wait(self, ticket: _Ticket) -> None:
        """Nothing to wait for."""


class StreamLane:
    """On a GPU: a stream of its own."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> _Ticket:
        """As `Lane.copy`."""
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
        return _Ticket((target, source), self.stream.record_event())

    def wait(self, ticket: _Ticket) -> None:
        """As `Lane.wait`."""
        torch.cuda.current_stream(self.stream.device).wait_event(ticket.done)


def lane(device: torch.device) -> Lane:
    """A new one for `device`."""
    return StreamLane(device) if device.type == "cuda" else DirectLane()


def on_host(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Uninitialised host memory that a copy from and to `device` need not wait for."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
