"""Files are written in blocks, past the page cache or through it: the same bytes, the right digest, and a message when the disk is full."""

import errno
import hashlib
import os

import pytest
import torch

from tunestation.errors import TunestationError
from tunestation.models import output
from tunestation.models.output import Span, write_file
from tunestation.models.shards import Shards, moved, write_shards


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(output, "BLOCK", 8192)


@pytest.mark.parametrize("size", [0, 1, 4096, 8191, 8192, 8193, 100_000])
@pytest.mark.parametrize("direct", [True, False])
def test_pieces_of_memory_and_of_files_become_one_file_with_its_digest(tmp_path, monkeypatch, size, direct):
    if not direct:
        monkeypatch.setattr(output, "_pass_cache", lambda file, wanted: None)
    content = os.urandom(size)
    (tmp_path / "source").write_bytes(b"before" + content + b"after")
    with (tmp_path / "source").open("rb", buffering=0) as source:
        pieces = [torch.arange(10, dtype=torch.uint8), Span(source, 6, size), torch.zeros(20_000, dtype=torch.uint8)]
        digest = write_file(tmp_path / "made", pieces, hashed=True)
    wanted = bytes(range(10)) + content + bytes(20_000)
    assert (tmp_path / "made").read_bytes() == wanted and digest == hashlib.sha256(wanted).hexdigest()


def test_a_file_system_that_does_not_write_past_the_cache_is_written_through_it(tmp_path, monkeypatch):
    def refuse(file, command, flags=0):
        if command == output.fcntl.F_SETFL and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return 0 if command == output.fcntl.F_SETFL else os.O_WRONLY

    monkeypatch.setattr(output.fcntl, "fcntl", refuse)
    write_file(tmp_path / "made", [torch.ones(9000, dtype=torch.uint8)], hashed=False)
    assert (tmp_path / "made").read_bytes() == b"\1" * 9000


def test_a_source_that_became_shorter_and_a_full_disk_are_errors_and_not_a_shorter_file(tmp_path, monkeypatch):
    (tmp_path / "source").write_bytes(b"short")
    with (tmp_path / "source").open("rb", buffering=0) as source, pytest.raises(TunestationError, match="became shorter"):
        write_file(tmp_path / "made", [Span(source, 0, 9)], hashed=True)

    def full(file, block):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output.os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "made", [torch.ones(100_000, dtype=torch.uint8)], hashed=True)


def test_a_write_that_is_invalid_through_the_cache_too_is_an_error_and_not_tried_for_ever(tmp_path, monkeypatch):
    errors = iter([OSError(errno.EINVAL, "Invalid argument")] * 2)
    monkeypatch.setattr(output.os, "write", lambda file, block: (_ for _ in ()).throw(next(errors)))
    with pytest.raises(OSError, match="Invalid argument"):
        write_file(tmp_path / "made", [torch.ones(10, dtype=torch.uint8)], hashed=False)


def test_rows_of_a_transposed_matrix_in_a_pickle_are_rows_of_what_it_says(tmp_path):
    matrix = torch.arange(12, dtype=torch.float32).reshape(3, 4).T
    torch.save({"w": matrix, "whole": torch.arange(6)[2:5]}, tmp_path / "pytorch_model.bin")
    shards = Shards(tmp_path)
    assert torch.equal(shards.read("w"), matrix) and shards.read("whole").tolist() == [2, 3, 4]
    plan = [
        moved("rows", torch.empty(3, 3, device="meta"), lambda: iter([shards.rows("w", 1, 2), shards.rows("w", 0, 1)])),
        moved("whole", shards.meta("whole"), lambda: iter([shards.rows("whole")])),
    ]
    wanted = torch.cat([matrix[1:3], matrix[:1]])
    assert torch.equal(plan[0].load(), wanted)
    (tmp_path / "made").mkdir()
    write_shards(plan, tmp_path / "made", 10**6)
    made = Shards(tmp_path / "made")
    assert torch.equal(made.read("rows"), wanted) and made.read("whole").tolist() == [2, 3, 4]
