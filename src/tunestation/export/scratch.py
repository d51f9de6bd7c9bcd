"""Where an import grows until it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

from tunestation.errors import TunestationError

PREFIX, LOCK = ".importing-", ".importing.lock"


@contextmanager
def beside(output: Path) -> Iterator[Path]:
    """A folder on the disk of `output` that goes away in the end; what killed imports left there goes first, and is named.

    Raises TunestationError while another import into the same folder is going on.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output.parent / LOCK, timeout=0):
            for left in sorted(output.parent.glob(f"{PREFIX}*")):
                shutil.rmtree(left)
                print(f"removed {left}, which an interrupted import left", flush=True)
            with TemporaryDirectory(prefix=PREFIX, dir=output.parent) as folder:
                yield Path(folder)
    except Timeout:
        what = "another import into this folder is going on."
        raise TunestationError(what, str(output.parent), "Wait for it, or stop it first.") from None
