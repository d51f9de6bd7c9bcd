"""JSON files, written in one way: complete or not at all, and with one spelling for equal values."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: object) -> None:
    """Write `value` so that the name exists only when the file is complete; paths become text."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    text = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, default=str)
    temporary.write_text(f"{text}\n", encoding="utf-8", newline="\n")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """The value in `path`. Raises OSError or ValueError if there is none."""
    return json.loads(path.read_text(encoding="utf-8"))
