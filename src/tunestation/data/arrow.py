"""Packs written as an Arrow data set: the same packs give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from tunestation.data.spool import Spool, unpacked
from tunestation.pipeline.digest import file_digest
from tunestation.pipeline.files import write_json

BATCH = 1000
"""Packs in one Arrow record batch."""
FEATURES = datasets.Features({name: datasets.List(datasets.Value("int32")) for name in ("input_ids", "labels", "position_ids")})
FILE = "data-00000-of-00001.arrow"


def write_packs(packs: Sequence[Sequence[int]], spool: Spool, folder: Path) -> int:
    """Write one row a pack with the columns input_ids, labels and position_ids (lists of int32); returns the tokens written.

    `packs` are the documents of each pack. position_ids begin at 0 for each document of a pack: that is how attention
    keeps them apart. The folder is what `datasets.load_from_disk` reads, written batch by batch.
    """
    folder.mkdir()
    tokens = 0
    with pa.OSFile(str(folder / FILE), "wb") as file, pa.ipc.new_stream(file, FEATURES.arrow_schema) as stream:
        for first in range(0, len(packs), BATCH):
            batch = _batch(packs[first : first + BATCH], spool)
            stream.write_batch(batch)
            tokens += len(batch["input_ids"].values)
    datasets.DatasetInfo(features=FEATURES).write_to_directory(str(folder))
    # Of its own accord the library names a data set by a hash that differs from run to run.
    named = {"_data_files": [{"filename": FILE}], "_fingerprint": file_digest(folder / FILE)[:16], "_split": None}
    formatted = {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False}
    write_json(folder / "state.json", named | formatted)
    return tokens


def _batch(packs: Sequence[Sequence[int]], spool: Spool) -> pa.RecordBatch:
    offsets = np.cumsum([0, *(sum(spool.lengths[document] for document in row) for row in packs)], dtype=np.int32)
    documents = list(chain.from_iterable(packs))
    input_ids, labels = unpacked(spool.read(documents))
    positions = np.concatenate([np.arange(spool.lengths[document], dtype=np.int32) for document in documents])
    lists = [pa.ListArray.from_arrays(offsets, values) for values in (input_ids, labels, positions)]
    return pa.RecordBatch.from_arrays(lists, schema=FEATURES.arrow_schema)
