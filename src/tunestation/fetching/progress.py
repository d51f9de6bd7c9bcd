"""Plain progress lines for people, and a way to stop all streams."""

from __future__ import annotations

import threading
import time

EVERY = 5.0
"""Seconds between two lines."""


class Stopped(Exception):
    """Another stream failed, so this one ends."""


class Progress:
    """Bytes of several files that arrive at once. Safe to use from threads."""

    def __init__(self, name: str, total: int | None = None, done: int = 0):
        self._name, self._total, self._done = name, total, done
        self._begin, self._first = time.monotonic(), done
        self._spoke = self._begin
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def count(self, size: int) -> None:
        """`size` bytes more (negative: taken back). Raises Stopped after `stop`."""
        if self._stop.is_set():
            raise Stopped
        with self._lock:
            self._done += size
            now = time.monotonic()
            if now - self._spoke >= EVERY:
                self._spoke = now
                print(f"  {self._name}: {amount(self._done)}{self._of()}, {self._speed(now)}", flush=True)

    def stop(self) -> None:
        """Make every stream that counts here end."""
        self._stop.set()

    def finish(self) -> None:
        """Say what came, and how fast."""
        came = self._done - self._first
        print(f"  {self._name}: {amount(came)} in {time.monotonic() - self._begin:.1f} s, {self._speed(time.monotonic())}", flush=True)

    def _of(self) -> str:
        return "" if self._total is None else f" of {amount(self._total)}"

    def _speed(self, now: float) -> str:
        return f"{amount(int((self._done - self._first) / max(now - self._begin, 1e-3)))}/s"


def amount(size: int) -> str:
    """`size` bytes for people: 3.8 GB, 12 kB (powers of 1000, as disks are sold and hubs count)."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(size) >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
