"""Stage functions that do as they are told; a child process imports them."""

import os
import signal

from tunestation.errors import InputError, Problem
from tunestation.pipeline.job import Job, Result


def write(params: dict, job: Job) -> Result:
    """Write `files`, report `facts`, `metrics` and `volumes`, and say what was there before."""
    there = sorted(path.name for path in job.output.iterdir())
    for name, text in params.get("files", {"a.txt": "a\n"}).items():
        (job.output / name).write_text(text, encoding="utf-8")
    needed = {name: sorted(path.name for path in folder.iterdir()) for name, folder in job.needs.items()}
    print(f"wrote with hash seed {os.environ.get('PYTHONHASHSEED')}")
    return Result(params.get("facts", {}), params.get("metrics", {}), params.get("volumes", {}), {"there": there, "needed": needed})


def count(params: dict, job: Job) -> Result:
    """Write another text each time."""
    path = job.volumes.cache / "count"
    number = int(path.read_text()) + 1 if path.exists() else 1
    path.write_text(str(number))
    (job.output / "a.txt").write_text(str(number))
    return Result()


def refuse(params: dict, job: Job) -> Result:
    """The user's input is wrong in two places."""
    (job.output / "half.txt").write_text("half")
    raise InputError(problems=[Problem("is wrong.", "x.jsonl:3", "Mend it."), Problem("ist falsch: 你好.", "x.jsonl:9")])


def crash(params: dict, job: Job) -> Result:
    """A mistake of ours."""
    (job.output / "half.txt").write_text("half")
    raise ValueError("no such thing\nand more")


def fill(params: dict, job: Job) -> Result:
    """A disk that is full."""
    raise OSError(28, "No space left on device")


def die(params: dict, job: Job) -> Result:
    """Killed from outside, as by the kernel when memory runs out."""
    (job.output / "half.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)


def vanish(params: dict, job: Job) -> Result:
    """End without a word."""
    os._exit(0)


def stop(params: dict, job: Job) -> Result:
    """Somebody presses Ctrl-C in the terminal of the parent, which ends this process."""
    (job.output / "half.txt").write_text("half")
    os.kill(os.getppid(), signal.SIGINT)
    signal.pause()
