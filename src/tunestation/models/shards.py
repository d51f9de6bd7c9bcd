"""Weights of any size through little memory: tensors are mapped from a folder's files and streamed into new safetensors shards."""

from __future__ import annotations

import json
import mmap
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import torch

from tunestation.models.folder import INDEX
from tunestation.models.output import Span, write_file
from tunestation.models.stored import DTYPES, stored_in
from tunestation.pipeline.digest import file_digest
from tunestation.pipeline.files import read_json, write_json

BLOCK = 64 * 2**20
"""Bytes that are read before the memory of what was read is given back."""
AHEAD = 4 * BLOCK
"""Bytes behind a tensor that the operating system fetches from the disk while the tensor is used."""
WAITING = 2
"""Pieces that are made beside those that keep the processors busy, since making one begins with waiting for the disk."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Shards:
    """The tensors of safetensors or PyTorch files, in the order of the files; none is in memory before it is used."""

    def __init__(self, source: Path):
        """`source` is a model folder, or one file. Raises InputError for no weights, and for a pickle that wants more than tensors."""
        self._files = [_File(path) for path in ([source] if source.is_file() else weight_files(source))]
        self._where = {name: file for file in self._files for name in file.tensors}

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def meta(self, name: str) -> torch.Tensor:
        """Shape and dtype of a tensor, on the device `meta`."""
        return self._where[name].tensors[name].meta

    def read(self, name: str) -> torch.Tensor:
        """The tensor on the CPU, mapped from its file; to be used up before the next `release`, or copied."""
        return self._where[name].read(name)

    def rows(self, name: str, first: int = 0, count: int | None = None) -> Piece:
        """Rows of a tensor, numbers of a vector, or all of it: where they lie, which `write_shards` copies as they are."""
        return self._where[name].rows(name, first, count)

    def release(self) -> None:
        """Give back the memory of everything read so far; the operating system may keep the pages as its own cache."""
        for file in self._files:
            file.release()


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: safetensors where there are any, else PyTorch's pickles; empty if there are neither."""
    for index, single in ((INDEX, "model.safetensors"), ("pytorch_model.bin.index.json", "pytorch_model.bin")):
        if (folder / index).is_file():
            return [folder / name for name in sorted(set(read_json(folder / index)["weight_map"].values()))]
        if (folder / single).is_file():
            return [folder / single]
    return []


class _File:
    """A file of weights, mapped."""

    def __init__(self, path: Path):
        self.tensors = stored_in(path)
        self._file = path.open("rb", buffering=0)
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch warns of memory it may not write
        self._map.madvise(mmap.MADV_SEQUENTIAL)

    def read(self, name: str) -> torch.Tensor:
        found = self.tensors[name]
        if not found.extent:
            return torch.empty(found.meta.shape, dtype=found.meta.dtype)
        meta, start = found.meta, found.offset - found.offset % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, start, min(len(self._map) - start, meta.nbytes + AHEAD))
        flat = torch.frombuffer(self._map, dtype=meta.dtype, count=found.extent, offset=found.offset)
        return flat.as_strided(meta.shape, meta.stride())

    def rows(self, name: str, first: int, count: int | None) -> Piece:
        found = self.tensors[name]
        if not found.meta.is_contiguous():  # pickles may hold transposed ones
            return lambda: self.read(name) if count is None else self.read(name)[first : first + count]
        if count is None:
            return Span(self._file, found.offset, found.meta.nbytes)
        width = found.meta.nbytes // len(found.meta)
        return Span(self._file, found.offset + first * width, count * width)

    def release(self) -> None:
        self._map.madvise(mmap.MADV_DONTNEED)


Made = TypeVar("Made")
Piece = Callable[[], torch.Tensor] | Span
"""Makes some rows of a tensor, on whatever thread; or says where their bytes are."""


@dataclass(frozen=True)
class Planned:
    """A tensor that is going to be written."""

    name: str
    meta: torch.Tensor
    """Its shape and dtype, on the device `meta`."""
    load: Callable[[], torch.Tensor]
    """Makes it when its turn comes: on the CPU, with the shape and dtype of `meta`."""
    pieces: Callable[[], Iterator[Piece]] | None = None
    """Its rows a few at a time, in order, so that it is never in memory as a whole; None writes what `load` makes."""


def moved(name: str, meta: torch.Tensor, pieces: Callable[[], Iterator[Piece]]) -> Planned:
    """A tensor that is put together from rows of others as they are."""
    return Planned(name, meta, lambda: _joined(pieces(), meta), pieces)


def _joined(pieces: Iterator[Piece], meta: torch.Tensor) -> torch.Tensor:
    content = torch.cat([piece.read() if isinstance(piece, Span) else _flat(piece()) for piece in pieces])
    return content.view(meta.dtype).view(meta.shape)


def write_shards(
    tensors: Sequence[Planned], folder: Path, max_bytes: int, release: Callable[[], None] = lambda: None, hashed: bool = True
) -> dict[str, str]:
    """Write `tensors` into `folder` as model.safetensors, or as shards of at most `max_bytes` with an index; file -> SHA-256.

    A shard that is there already is complete (it gets its name at the end) and is not written again. `release` is called
    now and then, to forget what was read. A tensor larger than `max_bytes` has a shard of its own. Without `hashed` the
    digests are empty: hashing takes as long as writing where the disk is fast.
    """
    shards = list(_split(tensors, max_bytes))
    if len(shards) == 1:
        return {"model.safetensors": _write_shard(shards[0], folder / "model.safetensors", release, hashed)}
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    digests = {name: _write_shard(shard, folder / name, release, hashed) for name, shard in zip(names, shards, strict=True)}
    where = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    write_json(folder / INDEX, {"metadata": {"total_size": sum(tensor.meta.nbytes for tensor in tensors)}, "weight_map": where})
    return digests | {INDEX: file_digest(folder / INDEX)}


def _split(tensors: Sequence[Planned], max_bytes: int) -> Iterator[list[Planned]]:
    shard, size = [], 0
    for tensor in tensors:
        if shard and size + tensor.meta.nbytes > max_bytes:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.meta.nbytes
    yield shard


def _write_shard(shard: list[Planned], path: Path, release: Callable[[], None], hashed: bool) -> str:
    if path.is_file():
        return file_digest(path) if hashed else ""
    ordered = sorted(shard, key=lambda tensor: -tensor.meta.itemsize)  # wide dtypes first, so that each lies aligned
    part = path.with_name(path.name + ".part")
    digest = write_file(part, _released(_content(ordered), release), hashed)
    part.rename(path)
    return digest


def _released(content: Iterator[torch.Tensor | Span], release: Callable[[], None]) -> Iterator[torch.Tensor | Span]:
    """`content`, where what was read for it is forgotten now and then."""
    read = 0
    for tensor in content:
        yield tensor
        if (read := read + tensor.nbytes) >= BLOCK:
            release()
            read = 0
    release()


def _content(tensors: list[Planned]) -> Iterator[torch.Tensor | Span]:
    """The bytes of a safetensors file, a piece at a time."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for tensor in tensors:
        offsets = [end, end := end + tensor.meta.nbytes]
        header[tensor.name] = {"dtype": NAMES[tensor.meta.dtype], "shape": list(tensor.meta.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield torch.frombuffer(bytearray(len(text).to_bytes(8, "little") + text), dtype=torch.uint8)
    sizes = Counter()
    for in_pieces, some in groupby(tensors, lambda tensor: tensor.pieces is not None):
        for name, content in made_ahead(_pieces(some)) if in_pieces else (_bytes_of(tensor, tensor.load) for tensor in some):
            sizes[name] += content.nbytes
            yield from [content] if isinstance(content, Span) else content.split(BLOCK)
    for tensor in tensors:
        if sizes[tensor.name] != tensor.meta.nbytes:
            raise ValueError(f"{tensor.name}: {sizes[tensor.name]} bytes were made for {tensor.meta.dtype} {list(tensor.meta.shape)}")


def _pieces(tensors: Iterable[Planned]) -> Iterator[Callable[[], tuple[str, torch.Tensor | Span]]]:
    """Those of all tensors, so that the processors have work where one tensor ends and another begins."""
    return (partial(_bytes_of, tensor, piece) for tensor in tensors for piece in tensor.pieces())


def _bytes_of(planned: Planned, piece: Piece) -> tuple[str, torch.Tensor | Span]:
    if isinstance(piece, Span):
        return planned.name, piece
    made = piece()
    if (made.shape[1:], made.dtype) != (planned.meta.shape[1:], planned.meta.dtype):
        raise ValueError(f"{planned.name}: {made.dtype} {list(made.shape)} is not {planned.meta.dtype} {list(planned.meta.shape)}")
    return planned.name, _flat(made)


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def made_ahead(pieces: Iterable[Callable[[], Made]]) -> Iterator[Made]:
    """What `pieces` make, in order; while one is used, each processor makes another, and some wait for the disk.

    Each is made by one thread: torch's own threads wait for each other at every small step, and much longer on a busy machine.
    """
    threads = torch.get_num_threads()
    coming: deque[Future] = deque()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads + WAITING) as makers:
            for piece in pieces:
                coming.append(makers.submit(piece))
                if len(coming) > threads + WAITING:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
    finally:
        torch.set_num_threads(threads)
