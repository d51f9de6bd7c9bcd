"""What a stage's own process runs: `python -m tunestation.pipeline.child JOB.json`.

The terminal gets what the stage prints; everything that libraries write goes to the log.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import re
import signal
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

from tunestation.errors import TunestationError
from tunestation.pipeline.files import write_json
from tunestation.pipeline.job import Job, Result
from tunestation.settings import local_rank

ECHO = re.compile("Connection (closed|reset) by peer|Broken pipe|ncclRemoteError")
"""What gloo and NCCL say when the process at the other end is gone."""


def main(path: Path) -> int:
    """Run the job at `path`; writes result.json or error.json beside it. Returns the exit code."""
    die_with_parent()
    _split_output(path.with_name("log.txt"))
    job = Job.load(path)
    try:
        module, _, name = job.function.partition(":")
        result = getattr(importlib.import_module(module), name)(job.params, job)
    except BaseException as error:
        return _report(error, path)
    if local_rank() == 0:
        write_json(path.with_name("result.json"), asdict(result or Result()))
    return 0


def _report(error: BaseException, path: Path) -> int:
    traceback.print_exc()
    told = error if isinstance(error, TunestationError) else _in_words(error, path.with_name("log.txt"))
    if not (_is_echo(error) and path.with_name("error.json").exists()):
        write_json(path.with_name("error.json"), told.to_json())
    return told.exit_code


def _is_echo(error: BaseException) -> bool:
    """Whether it only says that another of the processes that work together has ended."""
    return isinstance(error, RuntimeError) and ECHO.search(str(error)) is not None


def _in_words(error: BaseException, log: Path) -> TunestationError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return TunestationError(f"the disk is full ({error}).", remedy="Free some space, or point TUNE_RUNS to a larger disk.")
    if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
        remedy = "Lower train.max_tokens or runtime.micro_batch_size, or choose method qlora."
        return TunestationError(f"memory ran out: {str(error).splitlines()[0]}", remedy=remedy)
    if _is_echo(error):
        remedy = "See what it said, on its own node if there are several; the same command goes on from the newest complete checkpoint."
        return TunestationError("another training process was lost.", remedy=remedy)
    first = (str(error).strip().splitlines() or [""])[0]
    return TunestationError(f"{type(error).__name__}: {first}", remedy=f"The whole story is in {log}")


def _split_output(log: Path) -> None:
    """File descriptors 1 and 2 go to the log; `sys.stdout` of the first process of a machine stays the terminal."""
    terminal = os.dup(1)
    for number in (1, 2):
        log_to(log, number)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    shown = terminal if local_rank() == 0 else 1
    sys.stdout = os.fdopen(shown, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)


def log_to(log: Path, number: int) -> None:
    """Let file descriptor `number` of this process write to the end of `log`."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, number)
    os.close(descriptor)


def die_with_parent() -> None:
    """A stage must not outlive a killed parent: another run would then meet it in the same folder (Linux only)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
