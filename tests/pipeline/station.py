"""A workspace with a tiny model, recipe and data, and two ways to run stages on it: as a user does, and quickly.

`invoke` starts everything in new processes. `quick` runs the same stage functions with the same job files in processes forked from
one that has imported the libraries: a training takes 3 seconds instead of 15.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import psutil
from tiny import make_tiny_model

from tunestation.errors import TunestationError
from tunestation.pipeline import child, process, run
from tunestation.pipeline.digest import read_sums
from tunestation.pipeline.job import Job
from tunestation.pipeline.shelf import Shelf
from tunestation.pipeline.stage import Stage, keys
from tunestation.pipeline.workers import Workers
from tunestation.training import checkpoints
from tunestation.work import Work, open_recipe

PROJECT = Path(__file__).resolve().parents[2]
PATIENCE = 300
"""Seconds after which a process that should have ended is given up."""


def rows(count: int = 6) -> list[dict]:
    """Sums as conversations; one answer is long, so that rows differ in length."""
    return [_row(a, b) for a in range(count) for b in range(count)]


def _row(a: int, b: int) -> dict:
    answer = f"It is {a + b}{', of course' * (a % 3)}."
    return {"messages": [{"role": "user", "content": f"What is {a} and {b}?"}, {"role": "assistant", "content": answer}]}


def recipe(**changes: dict) -> dict:
    """A recipe of a few seconds; `changes` are laid over its sections."""
    plain = {
        "schema_version": 1,
        "name": "tiny",
        "summary": "A few steps of a tiny model.",
        "model": {"source": {"kind": "folder", "path": "tiny"}},
        "data": {"sources": [{"source": {"kind": "files", "paths": ["rows.jsonl"]}}]},
        "train": {
            "epochs": 2,
            "max_tokens": 128,
            "global_batch_size": 2,
            "learning_rate": 2e-3,
            "save_steps": 4,
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
        },
        "evaluate": {"fraction": 0.1, "every_steps": 2, "prompts": ["What is 1 and 1?"], "max_new_tokens": 6},
    }
    return plain | {name: plain.get(name, {}) | part if isinstance(part, dict) else part for name, part in changes.items()}


@dataclass
class Station:
    """Volumes and recipes in a temporary folder."""

    root: Path
    gpu: bool = False
    """Let stages see the machine's GPUs."""

    def __post_init__(self) -> None:
        self.recipes.mkdir(parents=True)
        make_tiny_model(self.model)
        self.write_rows(rows())
        self.write(recipe())

    @property
    def recipes(self) -> Path:
        return self.root / "recipes"

    @property
    def model(self) -> Path:
        return self.root / "home" / "models" / "tiny"

    @property
    def environment(self) -> dict[str, str]:
        hidden = {} if self.gpu else {"CUDA_VISIBLE_DEVICES": ""}
        return {"TUNE_HOME": str(self.root / "home"), "TUNE_RECIPES": str(self.recipes), "TUNE_RUNNER": "here", **hidden}

    def write(self, plain: dict) -> None:
        """Write a recipe; JSON is YAML."""
        (self.recipes / f"{plain['name']}.yaml").write_text(json.dumps(plain, indent=1), encoding="utf-8")

    def write_rows(self, found: list[dict], name: str = "rows.jsonl") -> None:
        (self.recipes / name).write_text("".join(f"{json.dumps(row)}\n" for row in found), encoding="utf-8")

    def start(self, *words: str, **extra: str) -> subprocess.Popen:
        """`invoke WORDS...` as its own process; its output comes through a pipe."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment, **extra}
        command = [sys.executable, "-m", "invoke", *words]
        return subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def invoke(self, *words: str, code: int = 0, **extra: str) -> str:
        """What `invoke WORDS...` printed; it must end with `code`."""
        started = self.start(*words, **extra)
        said, _ = started.communicate(timeout=PATIENCE)
        assert started.returncode == code, said
        assert "Traceback" not in said, said
        return said

    def open(self, *assignments: str, name: str = "tiny") -> Work:
        """The recipe as the tasks see it."""
        with mock.patch.dict(os.environ, self.environment):
            return open_recipe(name, assignments)

    @contextmanager
    def here(self, **variables: str) -> Iterator[None]:
        """This process sees the workspace, and starts stages quickly (a GPU cannot be used after a fork)."""
        start = process.run_child if self.gpu else quick
        with mock.patch.dict(os.environ, self.environment | variables), mock.patch.object(run, "run_child", start):
            yield

    def make(self, last: str, *assignments: str, name: str = "tiny", force: bool = False, processes: int = 1) -> Path:
        """Run what the stage `last` needs, and it; returns its result."""
        work = self.open(*assignments, name=name)
        with self.here(), run.alone(work.shelf.folder):
            *_, done = run.run(work.until(last), work.shelf, work.runtime, Workers(processes), [last] if force else [])
        return done.folder

    def kill(self, at: str, *assignments: str, name: str = "tiny", processes: int = 1) -> Path:
        """Train, and kill the training processes as soon as checkpoint `at` is there; returns the unfinished result."""
        self.make("prepare", *assignments, name=name)
        partial = self.partial("train", *assignments, name=name)
        with mock.patch.object(sys.modules[__name__], "fatal", partial / "checkpoints" / at), suppress(TunestationError):
            self.make("train", *assignments, name=name, processes=processes)
        assert partial.is_dir(), "it finished before it was killed"
        return partial

    def _key(self, stage: str, assignments: tuple[str, ...], name: str) -> tuple[Shelf, str]:
        work = self.open(*assignments, name=name)
        return work.shelf, keys(work.stages)[stage]

    def partial(self, stage: str, *assignments: str, name: str = "tiny") -> Path:
        """Where an unfinished result of `stage` grows."""
        shelf, key = self._key(stage, assignments, name)
        return shelf.partial(stage, key)

    def logs(self, stage: str, *assignments: str, name: str = "tiny") -> Path:
        """Where `stage` writes its messages."""
        shelf, key = self._key(stage, assignments, name)
        return shelf.logs(stage, key)


fatal: Path | None = None
"""The checkpoint after which training processes are killed."""


def quick(stage: Stage, job: Job, logs: Path, cache: Path, workers: Workers) -> dict:
    """`process.run_child` with forked processes."""
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    job.save(logs / "job.json")
    world = workers.processes if stage.distributed else 1
    port = free_port()
    workers = [forks().Process(target=_work, args=(str(logs), rank, world, port, fatal)) for rank in range(world)]
    for worker in workers:
        worker.start()
    if fatal:
        wait_until((fatal / checkpoints.STAMP).exists, workers[0].is_alive)
        for worker in workers:
            worker.kill()
    for worker in workers:
        worker.join(PATIENCE)
        assert worker.exitcode is not None, (logs / "log.txt").read_text()
    return process._outcome(stage, logs, max((worker.exitcode for worker in workers), key=abs))


def record(folder: Path) -> dict:
    """stage.json of a result."""
    return run.read_record(folder)


def sums(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of a result."""
    return read_sums(folder)


def last_checkpoint(trained: Path) -> Path:
    """The newest checkpoint of a training."""
    return max((trained / "checkpoints").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))


def weights(trained: Path) -> bytes:
    """The bytes of what was learned, at the newest checkpoint."""
    (file,) = last_checkpoint(trained).glob("*model.safetensors")
    return file.read_bytes()


def history(trained: Path, name: str) -> dict[int, float]:
    """Step -> logged value (loss, eval_loss, grad_norm, learning_rate)."""
    logged = json.loads((last_checkpoint(trained) / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry[name] for entry in logged if name in entry}


def _work(logs: str, rank: int, world: int, port: int, last: Path | None) -> None:
    """What torch.distributed.run sets for each process, and then the stage, which stands still once checkpoint `last` is there."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    said = os.open(f"{logs}/said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    if last:
        checkpoints.seal = _standing_still(last, checkpoints.seal)
    sys.exit(child.main(Path(logs) / "job.json"))


def _standing_still(last: Path, seal: Callable) -> Callable:
    """`seal`, after which this process does nothing more: however late it is killed, there is no newer checkpoint."""

    def sealed(*given: object) -> None:
        seal(*given)
        if last.is_dir():
            os.kill(os.getpid(), signal.SIGSTOP)

    return sealed


@cache
def forks() -> multiprocessing.context.ForkServerContext:
    """Forks of an interpreter that was started as the pipeline starts its own, with the libraries imported."""
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    stages = [f"tunestation.stages.{name}" for name in ("fetch", "prepare", "train", "convert", "merge", "evaluate")]
    context.set_forkserver_preload([*stages, "station", "bitsandbytes", "gradio", "tunestation.chat.page", "tunestation.chat.api"])
    paths = os.pathsep.join([str(PROJECT / "src"), str(Path(__file__).parent)])
    hidden = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    scratch = tempfile.TemporaryDirectory()
    atexit.register(scratch.cleanup)
    with mock.patch.dict(os.environ, process.child_variables(Path(scratch.name), offline=True) | hidden):
        forkserver.ensure_running()
    return context


def free_port() -> int:
    """A port below those that the system gives to outgoing connections: none of them takes it before it is listened on."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", random.SystemRandom().randrange(10_000, 16_000)))
            return probe.getsockname()[1]


def wait_until(done: Callable[[], object], alive: Callable[[], bool] = lambda: True) -> None:
    """Until `done()`; fails when the process that should bring it about has ended."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert alive(), "the process ended before that"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def worker_of(running: subprocess.Popen) -> psutil.Process:
    """The training process behind `invoke`."""
    return children(running, "tunestation.pipeline.child")[0]


def children(running: subprocess.Popen, module: str) -> list[psutil.Process]:
    """The processes behind `invoke` that run `module`."""
    return [one for one in psutil.Process(running.pid).children(recursive=True) if module in _words(one)]


def _words(process: psutil.Process) -> list[str]:
    with suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def interrupt(station: Station, name: str, step: int, how: Callable[[subprocess.Popen], object]) -> tuple[int, str]:
    """`invoke train NAME` until the checkpoint of `step` is there, then how(its process); returns (exit code, what was printed)."""
    running = station.start("train", name)
    checkpoint = station.partial("train", name=name) / "checkpoints" / f"checkpoint-{step}"
    wait_until((checkpoint / checkpoints.STAMP).exists, lambda: running.poll() is None)
    how(running)
    said, _ = running.communicate(timeout=PATIENCE)
    return running.returncode, said
