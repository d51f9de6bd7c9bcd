"""A server that is asked to stop does stop."""

import signal
import subprocess
import sys

import pytest

SERVING = """
import sys
from tunestation.chat.server import serve

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for _ in range(2):
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})

serve(app, "127.0.0.1", 0, "ready")
"""
OFTEN = 200


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGTERM)])
def test_signals_that_follow_each_other_at_once_end_it_as_one_does(numbers):
    """As Ctrl-C reaches the process itself and, by way of its parent, a second time."""
    running = subprocess.Popen([sys.executable, "-c", SERVING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert running.stdout.readline() == "ready\n"
        for _ in range(OFTEN):
            for number in numbers:
                running.send_signal(number)
        assert running.communicate(timeout=60) == ("", "")
        assert running.returncode == 0
    finally:
        running.kill()
