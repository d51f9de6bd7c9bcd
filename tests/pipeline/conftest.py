"""What the tests on the real stack share: one workspace, whose results are found again by their keys."""

import pytest
from station import Station


@pytest.fixture(scope="session")
def station(tmp_path_factory):
    """The shared workspace. Tests add results under keys of their own, and edit nothing in it."""
    return Station(tmp_path_factory.mktemp("station"))


@pytest.fixture(scope="session")
def trained(station):
    """The result of training the tiny recipe as it stands: qlora, dropout 0.1, evaluations every 2 steps."""
    return station.make("train")
