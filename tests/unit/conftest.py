"""What several unit tests need."""

import pytest
from line import Line
from recipes_for_tests import Bench


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


@pytest.fixture
def line(tmp_path, monkeypatch) -> Line:
    return Line(tmp_path, monkeypatch)
