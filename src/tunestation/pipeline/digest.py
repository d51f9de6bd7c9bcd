"""SHA-256 of files, and the SHA256SUMS of a folder (readable by `sha256sum -c`)."""

from __future__ import annotations

import errno
import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

SUMS = "SHA256SUMS"
RECORD = "stage.json"
AT_ONCE = 4
"""Files that are hashed at once."""


def file_digest(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_digest(text: str) -> str:
    """SHA-256 of `text` in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


class Digests:
    """File digests, remembered as long as size, change time and inode stay the same."""

    def __init__(self, cache: Path):
        """Raises OSError if `cache` takes no files."""
        cache.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(cache / "digests.sqlite", timeout=30)
            self._db.execute("create table if not exists digest (path text primary key, stamp text, sha256 text)")
        except sqlite3.Error as error:
            raise OSError(errno.EIO, f"digests.sqlite: {error}") from None

    def of(self, path: Path) -> str:
        """SHA-256 of `path`, read again only when the file changed."""
        return self.of_all([path])[path]

    def of_all(self, paths: Sequence[Path]) -> dict[Path, str]:
        """SHA-256 of each of `paths`; those that have to be read are read a few at once."""
        stamps = {path: _stamp(path) for path in paths}  # before reading: what changes meanwhile is read again the next time
        known = {path: self._known(path, stamps[path]) for path in paths}
        unread = [path for path, sha256 in known.items() if sha256 is None]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for path, sha256 in zip(unread, pool.map(file_digest, unread), strict=True):
                self._keep(path, stamps[path], sha256)
                known[path] = sha256
        return known

    def remember(self, path: Path, sha256: str) -> None:
        """Take the word of whoever wrote `path` for its SHA-256."""
        self._keep(path, _stamp(path), sha256)

    def _known(self, path: Path, stamp: str) -> str | None:
        query = "select sha256 from digest where path = ? and stamp = ?"
        found = self._db.execute(query, (str(path.resolve()), stamp)).fetchone()
        return found[0] if found else None

    def _keep(self, path: Path, stamp: str, sha256: str) -> None:
        with suppress(sqlite3.OperationalError), self._db:  # as of a full disk: it will be read again
            self._db.execute("insert or replace into digest values (?, ?, ?)", (str(path.resolve()), stamp, sha256))


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}"


def files_below(folder: Path, unchecked: Iterable[str] = ()) -> list[str]:
    """Names of all files below `folder`, sorted; without the record, the sums, and what matches `unchecked`."""
    skip = (SUMS, RECORD, *unchecked)
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if not any(fnmatch(name, pattern) for pattern in skip))


def write_sums(folder: Path, unchecked: Iterable[str]) -> str:
    """Write SHA256SUMS into `folder`; returns the SHA-256 of that file: the digest of all outputs."""
    names = files_below(folder, unchecked)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        digests = pool.map(lambda name: file_digest(folder / name), names)
        text = "".join(f"{sha256}  {name}\n" for name, sha256 in zip(names, digests, strict=True))
    (folder / SUMS).write_text(text, encoding="utf-8")
    return text_digest(text)


def read_sums(folder: Path) -> dict[str, str]:
    """Name -> SHA-256, as written by `write_sums`."""
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    return {line[66:]: line[:64] for line in lines}


def outputs_digest(folder: Path) -> str:
    """The digest of all outputs of a published folder."""
    return file_digest(folder / SUMS)
