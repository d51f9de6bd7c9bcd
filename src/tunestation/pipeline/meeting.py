"""Nodes that train together meet first: they compare what each would run, and do what node 0 says.

Node 0 listens on TUNE_RENDEZVOUS; every other node sends one line of JSON and gets one back. A stage that differs between nodes
(another recipe, code, data or version) is refused in words here, where torch.distributed would wait or compute nonsense.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tunestation.errors import InputError, Problem, TunestationError
from tunestation.pipeline import machine
from tunestation.pipeline.plan import Step
from tunestation.pipeline.shelf import Shelf
from tunestation.pipeline.stage import differences, tool_versions
from tunestation.pipeline.workers import Workers

PATIENCE = 3600.0
"""Seconds that a node waits for the others, which may still be fetching a model."""
LINE = 1 << 20
"""Longest message in bytes."""


@dataclass
class Guest:
    """A node that came to node 0, and waits for its word."""

    offer: dict
    line: socket.socket


def agree(step: Step, found: Mapping[str, str], shelf: Shelf, workers: Workers, patience: float = PATIENCE) -> Step:
    """Meet the other nodes before `step`; every node gets the action of node 0.

    Raises InputError on every node if they would not run the same, TunestationError if they do not all come within `patience` seconds.
    """
    offer = _offer(step, found, shelf, workers)
    print(f"\n[{step.stage.name}] node {workers.node} of {workers.nodes} meets the others at {workers.host}:{workers.port}", flush=True)
    deadline = time.monotonic() + patience
    answer = _receive(offer, workers, deadline) if workers.node == 0 else _visit(offer, workers, deadline)
    if answer["problems"]:
        raise InputError(problems=[Problem(what, "nodes", "Give all nodes the same recipe, code and data.") for what in answer["problems"]])
    return step if workers.node == 0 else replace(step, action=answer["action"], reason="as node 0 does")


def _offer(step: Step, found: Mapping[str, str], shelf: Shelf, workers: Workers) -> dict:
    stage = step.stage
    inputs = {name: shelf.outputs(name, found[name]) for name in stage.needs}
    versions = tool_versions(stage.tools) | {"python": machine.python()}
    same = {"key": step.key, "params": stage.params, "versions": versions, "inputs": inputs}
    return {"stage": stage.name, "node": workers.node, "action": step.action, "same": same | {"processes": workers.processes}}


def _receive(offer: dict, workers: Workers, deadline: float) -> dict:
    """Node 0: wait for all others, judge what they offer, and tell them."""
    guests: dict[int, Guest] = {}
    try:
        with _listen(workers) as server:
            while len(guests) < workers.nodes - 1:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                _welcome(server, guests, workers)
    except TimeoutError:
        missing = [str(node) for node in range(1, workers.nodes) if node not in guests]
        raise _nobody(f"node {', '.join(missing)} did not come to {workers.host}:{workers.port}") from None
    problems = [problem for node, guest in sorted(guests.items()) for problem in _compare(offer, node, guest.offer)]
    answer = {"action": offer["action"], "problems": problems}
    for node, guest in guests.items():
        _tell(node, guest, answer)
    return answer


def _tell(node: int, guest: Guest, answer: dict) -> None:
    try:
        with guest.line:
            guest.line.sendall(_line(answer))
    except OSError as error:
        raise TunestationError(f"node {node} went away while it waited ({error.strerror}).", "nodes", "Run the command again.") from None


def _listen(workers: Workers) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(workers.host, workers.port, type=socket.SOCK_STREAM)[0]
    server = socket.socket(family, kind, protocol)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind(address)
    except OSError as error:
        server.close()
        what = f"node 0 cannot listen on {workers.host}:{workers.port} ({error.strerror})."
        raise TunestationError(what, "TUNE_RENDEZVOUS", "Give an address of node 0 itself and a free port there.") from None
    server.listen()
    return server


def _welcome(server: socket.socket, guests: dict[int, Guest], workers: Workers) -> None:
    """Take in one visitor; whoever does not speak like a node of ours is let go, a node that comes again replaces itself."""
    line, _ = server.accept()
    try:
        line.settimeout(10)
        offer = _read(line)
        node = offer["node"]
    except (OSError, ValueError, KeyError, TypeError):
        line.close()
        return
    if node not in range(1, workers.nodes):
        line.close()
        return
    if node in guests:
        guests[node].line.close()
    guests[node] = Guest(offer, line)


def _visit(offer: dict, workers: Workers, deadline: float) -> dict:
    """Another node: come to node 0 as soon as it is there, and wait for its word."""
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((workers.host, workers.port), timeout=10) as line:
                line.sendall(_line(offer))
                line.settimeout(max(0.01, deadline - time.monotonic()))
                return _read(line)
        except (OSError, ValueError):
            time.sleep(0.2)
    raise _nobody(f"node 0 did not answer at {workers.host}:{workers.port}")


def _nobody(what: str) -> TunestationError:
    remedy = "Run the same command on every node, each with its own TUNE_NODE_RANK, and let them reach each other on that port."
    return TunestationError(f"{what} in time.", "nodes", remedy)


def _compare(mine: dict, node: int, theirs: dict) -> list[str]:
    if mine["stage"] != theirs["stage"]:
        return [f"node {node} is at {theirs['stage']}, node 0 at {mine['stage']}."]
    changed = [line for line in differences(mine["same"], theirs["same"]) if not line.startswith("key:")]
    if mine["same"] == theirs["same"]:
        return []
    return [f"node {node} would run another {mine['stage']} ({'; '.join(changed[:3]) or 'another version of the code'})."]


def _line(message: Any) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode() + b"\n"


def _read(line: socket.socket) -> dict:
    """One message. Raises ValueError if the line ends before, or is longer than any message of ours."""
    with line.makefile("rb") as file:
        return json.loads(file.readline(LINE))
