"""What the tests on the real stack share: one workspace, whose results are found again by their keys."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton, where it is installed, decides at its import how kernels are run

from chatting import make_pair
from preparing import Bench
from station import Station

from tunestation.chat.engine import Engine


@pytest.fixture(scope="session")
def station(tmp_path_factory):
    """The shared workspace. Tests add results under keys of their own, and edit nothing in it."""
    return Station(tmp_path_factory.mktemp("station"))


@pytest.fixture(scope="session")
def trained(station):
    """The result of training the tiny recipe as it stands: qlora, dropout 0.1, evaluations every 2 steps."""
    return station.make("train")


@pytest.fixture
def bench(tmp_path) -> Bench:
    """A recipe folder of one test's own, whose data can be prepared."""
    return Bench(tmp_path)


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Weights of a tiny model and an adapter that changes what it says."""
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def endless_pair(tmp_path_factory):
    """Weights whose answers end only when they are cut, so that there is time to stop them."""
    return make_pair(tmp_path_factory.mktemp("endless"), context=8192, endless=True)


@pytest.fixture(scope="session")
def engine(pair):
    """It answers for every test of this process; none may leave it broken."""
    engine = Engine(pair)
    yield engine
    engine.close()
