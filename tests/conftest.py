"""Child processes of tests find the project where pytest does, whatever folder they run in; no test depends on the clock or the terminal.

Where several processes share the work (pytest-xdist), each takes whole files, and one of them all tests of a GPU, one those of the image;
with `--dist worksteal` each takes whatever test is next, which is faster for the tests of a GPU that has room for many.
"""

import os
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, settings

SOURCES = str(Path(__file__).parents[1] / "src")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (SOURCES, os.environ.get("PYTHONPATH"))))
os.environ.pop("COLUMNS", None)  # else texts would be as wide as somebody's window
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Files share what their fixtures have made; other ways than the usual one are left to pytest-xdist."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = PurePosixPath(nodeid.split("::")[0])
            return file.parent.name if file.parent.name in ("gpu", "image") else str(file)

    return ByFile(config, log)
