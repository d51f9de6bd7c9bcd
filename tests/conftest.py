"""Child processes of tests find the project where pytest does, whatever folder they run in; no test depends on the clock or the terminal.

Where several processes share the work (pytest-xdist), each takes whole files, and one of them all tests of a GPU, one those of the image.
"""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

SOURCES = str(Path(__file__).parents[1] / "src")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (SOURCES, os.environ.get("PYTHONPATH"))))
os.environ.pop("COLUMNS", None)  # else texts would be as wide as somebody's window
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items):
    """Files share what their fixtures have made."""
    for item in items:
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group(folder if folder in ("gpu", "image") else item.path.name))
