"""Packs written as an Arrow data set: the same packs give the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from tunestation.data.encoding import Encoded

BATCH = 1000
"""Packs in one Arrow record batch."""


def write_packs(packs: Sequence[Sequence[Encoded]], folder: Path) -> None:
    """Write one row a pack with the columns input_ids, labels and position_ids (lists of int32).

    position_ids begin at 0 for each conversation of a pack: that is how attention keeps them apart.
    """
    table = pa.concat_tables([_table(packs[first : first + BATCH]) for first in range(0, max(len(packs), 1), BATCH)])
    # Of its own accord the library names a data set by a hash that differs from run to run.
    data = datasets.Dataset(table, fingerprint=_digest(table)[:16])
    # An empty data set would get no file at all, and could not be loaded.
    data.save_to_disk(folder, num_shards=None if packs else 1)


def _table(packs: Sequence[Sequence[Encoded]]) -> pa.Table:
    offsets = np.cumsum([0, *(sum(len(one.input_ids) for one in row) for row in packs)], dtype=np.int32)
    flat = [one for row in packs for one in row]
    values = {
        "input_ids": (one.input_ids for one in flat),
        "labels": (one.labels for one in flat),
        "position_ids": (range(len(one.input_ids)) for one in flat),
    }
    return pa.table({name: pa.ListArray.from_arrays(offsets, _int32(lists)) for name, lists in values.items()})


def _int32(lists: Iterable[Sequence[int]]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(lists), dtype=np.int32)


def _digest(table: pa.Table) -> str:
    digest = hashlib.sha256()
    for name in table.column_names:
        for chunk in table[name].chunks:
            for buffer in chunk.buffers():
                digest.update(b"-" if buffer is None else buffer)
    return digest.hexdigest()
