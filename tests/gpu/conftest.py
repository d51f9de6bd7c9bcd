"""The workspace of the pipeline tests, on a GPU."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))


@pytest.fixture(scope="session")
def station(tmp_path_factory):
    """A workspace whose stages see the GPUs."""
    from station import Station

    return Station(tmp_path_factory.mktemp("gpu"), gpu=True)
