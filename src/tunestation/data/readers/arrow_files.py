"""Parquet and Arrow: typed columns, read one batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunestation.data.problems import Problems
from tunestation.data.readers.row import Row
from tunestation.data.readers.text import whole_file
from tunestation.errors import Problem
from tunestation.recipe.data import ReadOptions

if TYPE_CHECKING:
    import pyarrow

BATCH = 256
"""Rows that are turned into Python objects at once."""


def parquet_rows(path: Path, name: str, options: ReadOptions, problems: Problems) -> Iterator[Row]:
    """One row a row of the table."""
    return _rows(path, name, problems, _parquet_batches, "Parquet")


def arrow_rows(path: Path, name: str, options: ReadOptions, problems: Problems) -> Iterator[Row]:
    """Both of Arrow's formats, the file and the stream; `datasets` writes the latter."""
    return _rows(path, name, problems, _arrow_batches, "Arrow")


def _parquet_batches(path: Path) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=BATCH)


def _arrow_batches(path: Path) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        try:
            file = pyarrow.ipc.open_file(source)
        except pyarrow.ArrowInvalid:
            source.seek(0)
            yield from pyarrow.ipc.open_stream(source)
        else:
            yield from (file.get_batch(index) for index in range(file.num_record_batches))


def _rows(path: Path, name: str, problems: Problems, batches: Callable, kind: str) -> Iterator[Row]:
    import pyarrow

    try:
        with whole_file(path) as whole:
            for number, values in enumerate(_values(batches(whole), name, problems), start=1):
                if values is not None:
                    yield Row(values, f"{name}:row {number}")
    except pyarrow.ArrowInvalid as error:
        problems.add(Problem(f"is not {kind} that can be read: {_first_line(error)}.", name))


def _values(batches: Iterable[pyarrow.RecordBatch], name: str, problems: Problems) -> Iterator[dict[str, Any] | None]:
    """Every row as a dict; None for one that holds bytes that are no UTF-8."""
    before = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            rows = batch.slice(start, BATCH)
            try:
                yield from rows.to_pylist()
            except UnicodeDecodeError:
                yield from _one_by_one(rows, before + start, name, problems)
        before += batch.num_rows


def _one_by_one(rows: pyarrow.RecordBatch, before: int, name: str, problems: Problems) -> Iterator[dict[str, Any] | None]:
    for index in range(rows.num_rows):
        try:
            yield rows.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            what = f"is not UTF-8: the byte 0x{error.object[error.start]:02x} fits nothing."
            problems.add(Problem(what, f"{name}:row {before + index + 1}", "Write the file again with UTF-8 texts."))
            yield None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")
