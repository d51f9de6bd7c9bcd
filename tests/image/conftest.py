"""Tests of the real image on a real engine. `invoke build` makes the image; without an engine all of them are skipped."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from image.dock import IMAGE, Station, docker, readable_by_all, sums
from tunestation.settings import PROJECT

USERS = (1000, 12345, 0)


@pytest.fixture(scope="session", autouse=True)
def engine():
    """A Docker engine that has the image."""
    if not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        pytest.skip("no engine")
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode:
        pytest.skip("no image: run 'invoke build' first")


@pytest.fixture(scope="session", params=USERS, ids=lambda uid: f"uid{uid}")
def station(request, engine):
    """A user's own checkout; the files of each belong to that user."""
    if request.param != os.getuid() and os.getuid() != 0:
        pytest.skip("only root can act as another user")
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="tunestation-") as folder:
        made = Station(readable_by_all(Path(folder)), request.param)
        yield made
        made.invoke("down")
        left = made.containers() + made.containers("chat")
        assert not left, docker("ps", "--all")


@pytest.fixture(scope="session")
def reproduced(station):
    """The station after the quickstart; one user's container is killed in mid-training first."""
    if station.uid == 12345:
        station.save_every(40)
        station.kill_in_training()
        assert "going on from checkpoint-" in station.invoke("up", "quickstart", "--port", station.port)
    else:
        station.invoke("reproduce", "quickstart", "--offline")
    return station


@pytest.fixture(scope="session")
def outside(engine):
    """The prepared data of the quickstart, made by the Python that runs these tests."""
    with tempfile.TemporaryDirectory() as home:
        variables = os.environ | {"TUNE_RUNNER": "here", "TUNE_HOME": home}
        command = [sys.executable, "-m", "invoke", "prepare", "quickstart", "--offline"]
        subprocess.run(command, cwd=PROJECT, env=variables, check=True, capture_output=True)
        (listed,) = Path(home).glob("runs/quickstart/prepare-*/SHA256SUMS")
        yield listed.parent.name, sums(listed)
