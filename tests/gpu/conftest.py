"""The workspace of the pipeline tests, on a GPU."""

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))


@pytest.fixture(scope="session")
def station(tmp_path_factory):
    """A workspace whose stages see the GPUs. pytest-xdist's processes, whose folders lie side by side, compile kernels once for all."""
    from station import Station

    made = Station(tmp_path_factory.mktemp("gpu"), gpu=True)
    cache = made.root / "home" / "cache"
    cache.mkdir(parents=True)
    base = tmp_path_factory.getbasetemp()
    together = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    for name in ("triton", "quack", "flash_attention"):
        shared = together / "kernels" / name
        shared.mkdir(parents=True, exist_ok=True)
        (cache / name).symlink_to(shared)
    return made
