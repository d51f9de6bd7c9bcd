"""Child processes of tests find the project where pytest does, whatever folder they run in."""

import os
from pathlib import Path

SOURCES = str(Path(__file__).parents[1] / "src")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (SOURCES, os.environ.get("PYTHONPATH"))))
