"""Bytes over HTTP into a file, continued where they stopped, through huggingface_hub's own session (proxies, certificates)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session, hf_raise_for_status

from tunestation.errors import TunestationError

T = TypeVar("T")

WAITS = (1.0, 2.0, 4.0)
"""Seconds before the second, third and fourth try."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as dead."""


def patiently(ask: Callable[[], T], position: Callable[[], int] = lambda: 0) -> T:
    """`ask()`, again after a dropped connection, a 5xx or a 429; tries count anew whenever `position()` has moved.

    Raises the last error as it came.
    """
    tries, last = 0, position()
    while True:
        try:
            return ask()
        except OfflineModeIsEnabled as error:
            raise TunestationError("HF_HUB_OFFLINE is set, so nothing can be fetched.", "", "Unset it, or run with --offline.") from error
        except HTTPError as error:
            tries, last = (0 if position() != last else tries), position()
            if not _passes(error) or tries == len(WAITS):
                raise
            print(f"  {_reason(error)}; trying again in {WAITS[tries]:.0f} s", flush=True)
            time.sleep(WAITS[tries])
            tries += 1


def receive(url: str, headers: dict[str, str], part: Path, count: Callable[[int], None]) -> None:
    """Append to `part` what it lacks of `url`, with a Range request; `count(n)` is told of every n bytes (negative: taken back).

    huggingface_hub's own download starts a file anew in each process; weights of several GB deserve better.
    """

    def once() -> None:
        start = _size(part)
        wanted = {**headers, "Accept-Encoding": "identity"}
        if start:
            wanted["Range"] = f"bytes={start}-"
        with get_session().stream("GET", url, headers=wanted, timeout=TIMEOUT) as response:
            if start and response.status_code == 416:  # nothing lies beyond what is there: the digest decides
                return
            hf_raise_for_status(response)
            continues = response.status_code == 206
            if not continues:
                count(-start)
            with part.open("ab" if continues else "wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    count(len(chunk))

    patiently(once, lambda: _size(part))


def unreachable(error: HTTPError, host: str, remedy: str) -> TunestationError:
    """The message for a server that does not answer, or answers with an error."""
    if isinstance(error, HfHubHTTPError):
        remedy = "Run the same command again in a while: what has arrived is kept." if _passes(error) else remedy
        return TunestationError(f"{host} answers with {_reason(error)}.", "", remedy)
    return TunestationError(f"{host} cannot be reached ({_reason(error)}).", "", remedy)


def _passes(error: HTTPError) -> bool:
    """Whether the same request may well succeed later."""
    if not isinstance(error, HfHubHTTPError):
        return True
    return error.response.status_code in (408, 429) or error.response.status_code >= 500


def _reason(error: HTTPError) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"HTTP status {error.response.status_code}"
    return str(error) or type(error).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
