"""Reading files in tests, and where the real ones are."""

from pathlib import Path

import pytest

from tunestation.data.problems import Problems
from tunestation.data.readers import Row
from tunestation.data.readers import read_rows as stream_rows
from tunestation.recipe.data import ReadOptions

SHARED = Path(__file__).parents[2] / "../shared/data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside this checkout")


def shared(name: str) -> Path:
    """A real data file."""
    return SHARED / name


def write(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_rows(path: Path, name: str = "", **options) -> list[Row]:
    name = name or path.name
    found = Problems(name)
    rows = list(stream_rows(path, name, found, ReadOptions(**options)))
    assert found.told() == ()
    assert len({row.where for row in rows}) == len(rows)
    return rows


def problems(path: Path, **options) -> list[str]:
    found = Problems(path.name)
    list(stream_rows(path, path.name, found, ReadOptions(**options)))
    assert found
    return [str(problem) for problem in found.told()]
