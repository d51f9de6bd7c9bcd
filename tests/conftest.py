"""Child processes of tests find the project where pytest does, whatever folder they run in; no test depends on the clock."""

import os
from pathlib import Path

from hypothesis import HealthCheck, settings

SOURCES = str(Path(__file__).parents[1] / "src")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (SOURCES, os.environ.get("PYTHONPATH"))))
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
