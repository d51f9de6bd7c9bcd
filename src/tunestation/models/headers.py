"""The header of a safetensors file: which tensors it holds, and where. No torch here: model folders are checked with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tunestation.errors import InputError

AGAIN = "Fetch or copy it again."
LONGEST = 100_000_000
"""Bytes; the limit that the safetensors format itself sets."""


@dataclass(frozen=True)
class Entry:
    """A tensor in a file."""

    dtype: str
    """As the format spells it: `BF16`."""
    shape: tuple[int, ...]
    begin: int
    """Bytes from the start of the file to its first number."""
    end: int
    """Bytes from the start of the file to what follows its last."""


def entries(path: Path, where: str = "") -> dict[str, Entry]:
    """Name -> tensor, in the order of the file: 8 bytes of header length, the header (JSON), and the tensors' bytes one after another.

    Raises InputError (of `where`, or of the path) for what is no such file or has another size than its header says.
    """
    size, where = path.stat().st_size, where or str(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= min(LONGEST, size) else b""
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        found = {name: _entry(entry, 8 + length) for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"])}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"is not a safetensors file, or its header is cut ({size:,} bytes).", where, AGAIN) from None
    wanted = max((entry.end for entry in found.values()), default=8 + length)
    if wanted != size:
        what = f"has {size:,} bytes, but its header says {wanted:,}: the copy is incomplete."
        raise InputError(what, where, AGAIN)
    return found


def _entry(entry: dict, start: int) -> Entry:
    begin, end = entry["data_offsets"]
    return Entry(str(entry["dtype"]), tuple(map(int, entry["shape"])), start + begin, start + end)
