"""Importing this puts the project's source on the path: a benchmark runs from a checkout, under any interpreter."""

import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "src"))
