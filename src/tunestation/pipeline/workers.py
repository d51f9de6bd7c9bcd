"""The processes that do a stage together: on this machine, and on how many machines like it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Workers:
    """What `torch.distributed.run` is told; one process on one node is the usual case."""

    processes: int = 1
    """On each node."""
    nodes: int = 1
    node: int = 0
    """Number of this node. Node 0 keeps the results; the others lend it their processors."""
    host: str = ""
    """Address of node 0, as the others reach it; with one node unused, as is `port`."""
    port: int = 0

    @property
    def world(self) -> int:
        """Processes of all nodes."""
        return self.processes * self.nodes

    def __str__(self) -> str:
        return str(self.processes) if self.nodes == 1 else f"{self.nodes} x {self.processes}"
