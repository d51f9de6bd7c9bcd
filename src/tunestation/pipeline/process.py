"""Starts a stage's child process, passes on Ctrl-C as a request to stop, and brings its result or error back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunestation.errors import Interrupted, TunestationError, from_json
from tunestation.pipeline.files import read_json
from tunestation.pipeline.job import Job
from tunestation.pipeline.machine import gpus
from tunestation.pipeline.stage import Stage
from tunestation.pipeline.workers import Workers
from tunestation.settings import child_environment

STOP = "stop"
"""A file of this name beside the job asks a graceful stage to save and end."""


def run_child(stage: Stage, job: Job, logs: Path, cache: Path, workers: Workers) -> dict:
    """Run `job` in its own process (or processes) and return its result; raises what the stage raised."""
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    job.save(logs / "job.json")
    command = _command(stage, logs / "job.json", workers)
    environment = child_environment(child_variables(cache, offline=stage.name != "fetch") | dict(stage.variables))
    child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    with child, _signals(stage, child, logs / STOP):
        code = child.wait()
    return _outcome(stage, logs, code)


def _command(stage: Stage, job: Path, workers: Workers) -> list[str]:
    module = ["-m", "tunestation.pipeline.child", str(job)]
    if not stage.distributed:
        return [sys.executable, *module]
    launcher = ["tunestation.pipeline.launch", str(job.with_name("log.txt")), *_meeting(workers)]
    return [sys.executable, "-m", *launcher, f"--nproc-per-node={workers.processes}", *module]


def _meeting(workers: Workers) -> list[str]:
    """How the processes find each other."""
    if workers.nodes == 1:
        # --standalone would look the host's name up; a fixed loopback address works without any network
        return ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    # static, not c10d: rank 0 must be on node 0, which keeps the results
    node = [f"--nnodes={workers.nodes}", f"--node-rank={workers.node}"]
    return [*node, "--rdzv-backend=static", f"--master-addr={workers.host}", f"--master-port={workers.port}"]


def child_variables(cache: Path, offline: bool) -> dict[str, str]:
    """Set before the interpreter starts: hash seed, deterministic cuBLAS, caches, no telemetry, and no network if `offline`."""
    # Gradio asks its own page whether it is up: that question must not go to a proxy
    alone = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    quiet = alone | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} if offline else {}
    return {
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_CACHE": str(cache / "datasets"),
        "HF_MODULES_CACHE": str(cache / "modules"),
        "TORCH_EXTENSIONS_DIR": str(cache / "torch_extensions"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "QUACK_CACHE_DIR": str(cache / "quack"),
        "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1",
        "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": str(cache / "flash_attention"),
        "TOKENIZERS_PARALLELISM": "false",
        # threads that spin while they wait lose tenfold as soon as another program takes one of few cores
        "OMP_WAIT_POLICY": "passive",
        "GRADIO_ANALYTICS_ENABLED": "False",
        **({} if gpus() else {"DS_ACCELERATOR": "cpu"}),
        **quiet,
    }


@contextmanager
def _signals(stage: Stage, child: subprocess.Popen, stop: Path) -> Iterator[None]:
    """First SIGINT or SIGTERM: ask a graceful stage to save, end any other; the second ends it at once."""

    def handle(number: int, _frame: object) -> None:
        if stage.graceful and not stop.exists():
            stop.touch()
            print(f"\nStopping {stage.name}: saving a checkpoint after this step (again to stop at once).", flush=True)
        else:
            stop.touch()
            os.killpg(child.pid, signal.SIGKILL)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(stage: Stage, logs: Path, code: int) -> dict:
    if (logs / "error.json").is_file():
        raise from_json(read_json(logs / "error.json"))
    if code == 0 and (logs / "result.json").is_file():
        return read_json(logs / "result.json")
    if (logs / STOP).exists():
        raise Interrupted(f"{stage.name} was stopped.", remedy="The same command goes on from what is complete.")
    raise TunestationError(f"{stage.name} ended without a result ({_ending(code)}).", remedy=f"The whole story is in {logs / 'log.txt'}")


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, often a sign that the machine ran out of memory" if name == "SIGKILL" else name
