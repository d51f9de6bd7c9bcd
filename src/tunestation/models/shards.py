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

from tunestation.errors import InputError
from tunestation.models.folder import INDEX
from tunestation.models.output import write_file
from tunestation.pipeline.digest import file_digest
from tunestation.pipeline.files import read_json, write_json

BLOCK = 64 * 2**20
"""Bytes that are written, and hashed, at once: what is resident beside the tensor at hand."""
AHEAD = 4 * BLOCK
"""Bytes behind a tensor that the operating system fetches from the disk while the tensor is used."""
WAITING = 2
"""Pieces that are made beside those that keep the processors busy, since making one begins with waiting for the disk."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""How the safetensors format spells a dtype."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Shards:
    """The tensors of safetensors or PyTorch files, in the order of the files; none is in memory before it is used."""

    def __init__(self, source: Path):
        """`source` is a model folder, or one file. Raises InputError for no weights, and for a pickle that wants more than tensors."""
        self._files = [_open(path) for path in ([source] if source.is_file() else weight_files(source))]
        self._where = {name: file for file in self._files for name in file.tensors}

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def meta(self, name: str) -> torch.Tensor:
        """Shape and dtype of a tensor, on the device `meta`."""
        return self._where[name].tensors[name]

    def read(self, name: str) -> torch.Tensor:
        """The tensor on the CPU, mapped from its file; to be used up before the next `release`, or copied."""
        return self._where[name].read(name)

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


class _SafetensorsFile:
    """Eight bytes of header length, the header (JSON), and the tensors' bytes one after another."""

    def __init__(self, path: Path):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch warns of memory it may not write
        self._map.madvise(mmap.MADV_SEQUENTIAL)
        header.pop("__metadata__", None)
        entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        self._offsets = {name: 8 + length + entry["data_offsets"][0] for name, entry in entries}
        self.tensors = {name: torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]], device="meta") for name, entry in entries}

    def read(self, name: str) -> torch.Tensor:
        meta, offset = self.tensors[name], self._offsets[name]
        start = offset - offset % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, start, min(len(self._map) - start, meta.nbytes + AHEAD))
        flat = torch.frombuffer(self._map, dtype=meta.dtype, count=meta.numel(), offset=offset)
        return flat.view(meta.shape)

    def release(self) -> None:
        self._map.madvise(mmap.MADV_DONTNEED)


class _PickleFile:
    """A zip of one pickle, which names tensors, and of their bytes; only a pickle that builds nothing else is read."""

    def __init__(self, path: Path):
        self._path, self._loaded = path, None
        _refuse_objects(path)
        self.tensors = {name: tensor.to("meta") for name, tensor in self._content().items()}
        self.release()

    def _content(self) -> dict[str, torch.Tensor]:
        if self._loaded is None:
            content = torch.load(self._path, map_location="cpu", weights_only=True, mmap=True)
            self._loaded = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
        return self._loaded

    def read(self, name: str) -> torch.Tensor:
        return self._content()[name]

    def release(self) -> None:
        self._loaded = None  # the mapping goes with the last tensor; reading the pickle again takes milliseconds


def _open(path: Path) -> _SafetensorsFile | _PickleFile:
    return _SafetensorsFile(path) if path.suffix == ".safetensors" else _PickleFile(path)


def _refuse_objects(path: Path) -> None:
    """Look, without building anything, for what else than tensors a pickle would import."""
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError) as error:
        what = f"is not a file that torch.save wrote, or is from before torch 1.6 ({str(error).splitlines()[0]})."
        raise InputError(what, str(path), "Fetch it again, or use a revision with safetensors.") from None
    if wanted:
        what = f"is a pickle that wants more than tensors: {', '.join(sorted(wanted))}. It was not read."
        raise InputError(what, str(path), "Use a safetensors revision of this model, from someone you trust.")


Made = TypeVar("Made")
Piece = Callable[[], torch.Tensor]
"""Makes some rows of a tensor, on whatever thread."""


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


def _released(content: Iterator[torch.Tensor], release: Callable[[], None]) -> Iterator[torch.Tensor]:
    """`content`, where what was read for it is forgotten now and then."""
    read = 0
    for tensor in content:
        yield tensor
        if (read := read + len(tensor)) >= BLOCK:
            release()
            read = 0
    release()


def _content(tensors: list[Planned]) -> Iterator[torch.Tensor]:
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
            sizes[name] += len(content)
            yield from content.split(BLOCK)
    for tensor in tensors:
        if sizes[tensor.name] != tensor.meta.nbytes:
            raise ValueError(f"{tensor.name}: {sizes[tensor.name]} bytes were made for {tensor.meta.dtype} {list(tensor.meta.shape)}")


def _pieces(tensors: Iterable[Planned]) -> Iterator[Callable[[], tuple[str, torch.Tensor]]]:
    """Those of all tensors, so that the processors have work where one tensor ends and another begins."""
    return (partial(_bytes_of, tensor, piece) for tensor in tensors for piece in tensor.pieces())


def _bytes_of(planned: Planned, piece: Piece) -> tuple[str, torch.Tensor]:
    made = piece()
    if (made.shape[1:], made.dtype) != (planned.meta.shape[1:], planned.meta.dtype):
        raise ValueError(f"{planned.name}: {made.dtype} {list(made.shape)} is not {planned.meta.dtype} {list(planned.meta.shape)}")
    return planned.name, made.contiguous().reshape(-1).view(torch.uint8)


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
