"""Documents as token ids in a file, so that data larger than memory can be packed."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tunestation.data.encoding import IGNORE, Encoded

WIDTH = np.dtype(np.int32).itemsize


class Spool:
    """Append-only. One int32 a token: the id where it is learned, its bitwise complement (below zero) where it is not."""

    def __init__(self, path: Path):
        self._file = path.open("w+b", buffering=1 << 20)
        self.lengths = array("i")
        """Tokens of each document."""
        self.labelled = array("i")
        """Learned tokens of each document."""
        self._starts = array("q", [0])

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, tokens: np.ndarray) -> None:
        """Append one document, as `packed` writes it."""
        self._file.write(tokens.tobytes())
        self.lengths.append(len(tokens))
        self.labelled.append(int((tokens >= 0).sum()))
        self._starts.append(self._starts[-1] + len(tokens))

    def flush(self) -> None:
        """Make everything readable."""
        self._file.flush()

    def read(self, documents: Sequence[int]) -> np.ndarray:
        """The tokens of these documents, one after the other, int32 (as `packed`)."""
        return np.concatenate([self._read(document) for document in documents])

    def _read(self, document: int) -> np.ndarray:
        # Not memory-mapped: pages of a map would count as this process's memory.
        start, length = self._starts[document], self.lengths[document]
        return np.frombuffer(os.pread(self._file.fileno(), length * WIDTH, start * WIDTH), dtype=np.int32)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def packed(encoded: Encoded) -> np.ndarray:
    """One int32 a token: the id where it is learned, its bitwise complement where it is not."""
    ids = np.array(encoded.input_ids, dtype=np.int32)
    return np.where(np.array(encoded.labels, dtype=np.int32) == IGNORE, ~ids, ids)


def unpacked(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(input_ids, labels), both int32, of what `packed` wrote."""
    learned = tokens >= 0
    return np.where(learned, tokens, ~tokens), np.where(learned, tokens, np.int32(IGNORE))
