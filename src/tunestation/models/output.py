"""Files of gigabytes, written past the page cache where the file system allows that, and hashed on the way."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import cycle
from pathlib import Path
from typing import BinaryIO

import torch

from tunestation.errors import TunestationError

BLOCK = 16 * 2**20
"""Bytes that are hashed, and written, at once; whole pages, as writing past the cache wants."""
BLOCKS = 4
"""One is filled while those before it are hashed and written."""


@dataclass(frozen=True)
class Span:
    """Bytes that lie in a file already."""

    file: BinaryIO
    """Open for as long as the span is used; not buffered."""
    offset: int
    nbytes: int

    def read(self) -> torch.Tensor:
        """A copy of them: uint8 [bytes]."""
        content = torch.empty(self.nbytes, dtype=torch.uint8)
        self.into(memoryview(content.numpy()), 0)
        return content

    def into(self, room: memoryview, begin: int) -> None:
        """Fill `room` with the bytes from `begin` on, which the page cache forgets. Raises TunestationError if the file is shorter now."""
        file, place, end = self.file.fileno(), self.offset + begin, self.offset + begin + len(room)
        while room:
            count = os.preadv(file, [room], place)
            if not count:
                raise TunestationError("became shorter while it was read.", self.file.name, "Let nothing write to it, and run again.")
            room, place = room[count:], place + count
        os.posix_fadvise(file, self.offset + begin, end - self.offset - begin, os.POSIX_FADV_DONTNEED)


def write_file(path: Path, content: Iterable[torch.Tensor | Span], hashed: bool) -> str:
    """Write `content`, one after another; returns once all is on the disk: its SHA-256, or an empty text.

    Tensors are uint8 [bytes], and copied before the next one is asked for. Bytes do not go through the page cache where the file system can
    do without (O_DIRECT, open(2)): filling its pages costs the processor several times what everything else here does, and
    drives out what other programs read again.
    """
    digest = sha256()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        _pass_cache(file, True)
        with ThreadPoolExecutor(1) as hasher, ThreadPoolExecutor(1) as writer:
            busy: deque[list[Future]] = deque()
            for block in _filled(content):
                busy.append([hasher.submit(digest.update, block)] if hashed else [])
                busy[-1].append(writer.submit(_write, file, block))
                if len(busy) == BLOCKS:
                    _finish(busy.popleft())
            for jobs in busy:
                _finish(jobs)
        os.fsync(file)
    finally:
        os.close(file)
    return digest.hexdigest() if hashed else ""


def _filled(content: Iterable[torch.Tensor | Span]) -> Iterator[memoryview]:
    """The bytes of `content` in blocks of one size, the last one shorter. A block is used again after `BLOCKS` of them."""
    blocks = cycle([mmap.mmap(-1, BLOCK) for _ in range(BLOCKS)])  # begin at a page, as writing past the cache wants
    block, used = next(blocks), 0
    for piece in content:
        done = 0
        while done < piece.nbytes:
            room = memoryview(block)[used : used + piece.nbytes - done]
            _fill(room, piece, done)
            done, used = done + len(room), used + len(room)
            if used == BLOCK:
                yield memoryview(block)
                block, used = next(blocks), 0
    yield memoryview(block)[:used]


def _fill(room: memoryview, piece: torch.Tensor | Span, begin: int) -> None:
    """Bytes of `piece` from `begin` on into `room`."""
    if isinstance(piece, Span):
        piece.into(room, begin)
    else:
        torch.frombuffer(room, dtype=torch.uint8).copy_(piece[begin : begin + len(room)])


def _write(file: int, block: memoryview) -> None:
    while block:
        try:
            block = block[os.write(file, block) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
                raise
            _pass_cache(file, False)  # the end of a file is no whole page


def _pass_cache(file: int, wanted: bool) -> None:
    flags = fcntl.fcntl(file, fcntl.F_GETFL) & ~os.O_DIRECT
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, flags | (os.O_DIRECT if wanted else 0))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _finish(jobs: list[Future]) -> None:
    for job in jobs:
        job.result()
