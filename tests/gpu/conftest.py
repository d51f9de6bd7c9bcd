"""The workspace of the pipeline tests, on a GPU."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))


@pytest.fixture(scope="session")
def station(tmp_path_factory):
    """A workspace whose stages see the GPUs. Kernels are compiled once for all processes that run tests, whose folders lie side by side."""
    from station import Station

    made = Station(tmp_path_factory.mktemp("gpu"), gpu=True)
    cache = made.root / "home" / "cache"
    cache.mkdir(parents=True)
    for name in ("triton", "quack", "flash_attention"):
        shared = tmp_path_factory.getbasetemp().parent / "kernels" / name
        shared.mkdir(parents=True, exist_ok=True)
        (cache / name).symlink_to(shared)
    return made
