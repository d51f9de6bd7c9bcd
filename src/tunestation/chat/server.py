"""Serves the API, and the page if wanted, until it is stopped."""

from __future__ import annotations

import errno
import logging
import secrets
import signal
import socket
import threading
import time

import uvicorn
from starlette.types import ASGIApp

from tunestation.errors import InputError, TunestationError
from tunestation.settings import password as own_password

SHORTEST_PASSWORD = 8
LOCAL_HOST, EVERY_HOST = "127.0.0.1", "0.0.0.0"


def check_port(host: str, port: int) -> None:
    """Raise InputError unless `port` can be listened on: asked before the model is loaded, which takes long."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            trouble = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise InputError(f"port {port} {trouble}; give another with --port") from error


def choose_password() -> tuple[str, bool]:
    """(password, whether it is a new one): TUNE_PASSWORD if it is set. Raises InputError for one that is easily guessed."""
    own = own_password()
    if own and not (own.isascii() and own.isprintable() and own == own.strip()):
        raise InputError(
            "TUNE_PASSWORD has characters that a bearer token cannot carry.",
            remedy="Choose one of letters, digits and signs of ASCII, with no space at its ends, or unset it.",
        )
    if own and len(own) < SHORTEST_PASSWORD:
        raise InputError(f"TUNE_PASSWORD has fewer than {SHORTEST_PASSWORD} characters.", remedy="Choose a longer one, or unset it.")
    return (own, False) if own else (secrets.token_urlsafe(16), True)


def serve(app: ASGIApp, host: str, port: int, ready: str) -> None:
    """Serve `app` until SIGINT or SIGTERM; prints `ready` once it answers."""
    stopped: list[int] = []  # no Event: a second signal within its set() would wait for itself, and one often follows at once
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: stopped.append(number))
    # Open streams and the page's heartbeat would keep it from ending.
    server = uvicorn.Server(uvicorn.Config(app, host, port, log_level="error", ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    while thread.is_alive() and not server.started:
        time.sleep(0.02)
    if not thread.is_alive():
        raise TunestationError("the server did not start.")
    print(ready, flush=True)
    while not stopped:
        time.sleep(0.1)
    logging.disable()  # uvicorn calls it an error of the page that its open streams are cut off
    server.should_exit = True
    thread.join()
