"""What the tests on the real stack share: one workspace, whose results are found again by their keys."""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import station as station_module
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton, where it is installed, decides at its import how kernels are run

from browsing import CHROMIUM, EXAMPLE, FLAGS, new_person, open_window
from chatting import make_pair, start_server
from playwright.sync_api import sync_playwright
from preparing import Bench
from station import PATIENCE, Station

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
def train_as(monkeypatch) -> Callable[[str], None]:
    """Lets the stage `train` run as another function, MODULE:NAME; with "" as itself again."""
    quick = station_module.quick

    def put(function: str) -> None:
        def start(stage, job, *rest):
            return quick(stage, replace(job, function=function) if function and stage.name == "train" else job, *rest)

        monkeypatch.setattr(station_module, "quick", start)

    return put


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


@pytest.fixture(scope="session")
def server(endless_pair, tmp_path_factory):
    """A chat page whose answers are long, in a process of its own."""
    folder = tmp_path_factory.mktemp("page")
    generation = {"temperature": 0.0, "max_new_tokens": 4000}
    chat = start_server(folder, weights=endless_pair, examples=[EXAMPLE, "How do I ask for a raise?"], generation=generation)
    chat.folder = folder
    yield chat
    assert chat.end() == 0
    assert chat.complained() == ""


@pytest.fixture(scope="session")
def alone(endless_pair):
    """The model of that page, asked without a page."""
    engine = Engine(endless_pair)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def chromium():
    """Not for longer than a module: as long as Playwright runs, no test can run an event loop of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS.split(), timeout=PATIENCE * 1000)
        yield browser
        browser.close()


@pytest.fixture
def person(chromium):
    """A browser with nothing kept."""
    context = new_person(chromium)
    yield context
    context.close()


@pytest.fixture
def window(person, server):
    """The chat page, open."""
    return open_window(person, server.url)
