"""Files as bytes and as lines of text: compression, encoding, byte order mark, and bytes that are no text."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import BinaryIO

from tunestation.data.problems import Problems
from tunestation.errors import Problem
from tunestation.recipe.data import ReadOptions

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Suffix -> how the file is compressed."""


def plain_suffix(path: PurePath) -> str:
    """The suffix that says what the file is: `.jsonl` of `x.jsonl.gz`."""
    suffix = path.suffix.lower()
    return PurePath(path.stem).suffix.lower() if suffix in COMPRESSIONS else suffix


def open_binary(path: Path) -> BinaryIO:
    """The file's bytes, decompressed while they are read."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    if not compression:
        return path.open("rb")
    import pyarrow

    return pyarrow.input_stream(str(path), compression=compression)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The path of the decompressed file, for formats that have to be read from their end."""
    if path.suffix.lower() not in COMPRESSIONS:
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=plain_suffix(path)) as copy:
        with open_binary(path) as stream:
            shutil.copyfileobj(stream, copy)
        copy.flush()
        yield Path(copy.name)


def open_text(path: Path, encoding: str, newline: str) -> io.TextIOWrapper:
    """The file as text. A byte that is no text becomes a lone surrogate, which `undecodable` finds: so its line can be told."""
    return io.TextIOWrapper(open_binary(path), encoding=encoding, errors="surrogateescape", newline=newline)


def lines(path: Path, name: str, options: ReadOptions, problems: Problems, newline: str = "\n") -> Iterator[str]:
    """The lines with their ends, without a byte order mark. Ends at the first byte that is no text, which `problems` get.

    With `newline` "\\n" only that ends a line: U+2028 and its like are allowed inside a JSON string.
    """
    with open_text(path, options.encoding, newline) as text:
        for number, line in enumerate(text, start=1):
            at = undecodable(line)
            if at >= 0:
                problems.add(not_text(line[at], options.encoding, f"{name}:{number}"))
                return
            yield line.removeprefix("\ufeff") if number == 1 else line


def undecodable(text: str) -> int:
    """Where in `text` the first byte stands that the encoding has no character for; -1 if all is well."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return error.start
    return -1


def not_text(byte: str, encoding: str, where: str) -> Problem:
    """The problem of a byte, as `undecodable` finds it, that fits nothing in `encoding`."""
    value = ord(byte) - 0xDC00
    likely = "utf-16" if value in (0xFE, 0xFF) else "gb18030"  # with these bytes UTF-16 marks its order; UTF-8 has no use for them
    remedy = f"Save the file as UTF-8, or name its encoding, as 'read: {{encoding: {likely}}}'."
    return Problem(f"is not {encoding.upper()}: the byte 0x{value:02x} fits nothing.", where, remedy)
