"""The machine that numbers are read on: its rates, its versions, a clock that does not make it wait, and the file they go to."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import torch

CUDA = torch.cuda.is_available()
RATES = ("matrix_tflops", "copy_tbps")
PACKAGES = ("torch", "triton", "transformers", "peft", "bitsandbytes", "deepspeed", "accelerate", "quack-kernels", "flash-attn-4")
PEERS = ("liger-kernel", "trl", "torchtune", "torchao", "unsloth")
GIB = 2**30


class Parser(argparse.ArgumentParser):
    """Says what is wrong in a line."""

    def error(self, message: str) -> None:
        """As a task does: what, where, and exit code 2."""
        print(message.removeprefix("argument "), file=sys.stderr)
        sys.exit(2)


class Clock:
    """Seconds between ticks as the GPU passes them, without making the host wait in between."""

    def __init__(self) -> None:
        self.ticks: list = []
        self.tick()

    def tick(self) -> None:
        """The end of a step."""
        if CUDA:
            self.ticks.append(torch.cuda.Event(enable_timing=True))
            self.ticks[-1].record()
        else:
            self.ticks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of each step."""
        if not CUDA:
            return [end - start for start, end in pairwise(self.ticks)]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(self.ticks)]


def limits() -> dict:
    """The rates of this machine: an 8192-cubed bfloat16 product of random numbers in TFLOP/s, and a copy in TB/s read and written."""
    if not CUDA:
        return {}
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source, target = (torch.empty(2**31, dtype=torch.uint8, device="cuda") for _ in range(2))
    product, copy = median_seconds(lambda: a @ b), median_seconds(lambda: target.copy_(source))
    return {"matrix_tflops": round(2 * 8192**3 / product / 1e12), "copy_tbps": round(2**32 / copy / 1e12, 2)}


def median_seconds(run: Callable) -> float:
    """Of ten calls, after one that is not counted."""
    run()
    clock = Clock()
    for _ in range(10):
        run()
        clock.tick()
    return statistics.median(clock.seconds())


def issued(run: Callable) -> float:
    """Seconds in which the host gives an idle GPU its work: what it takes at least, however fast the GPU is."""
    if CUDA:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def figures(seconds: list[float], tokens: list[float], losses: list[float]) -> dict:
    """What a row says of a stack's steps: the median rate, the peak since it was last reset, and the first losses."""
    rates = [count / taken for count, taken in zip(tokens, seconds, strict=True)]
    return {
        "tokens_per_second": round(statistics.median(rates)),
        "slowest": round(min(rates)),
        "fastest": round(max(rates)),
        "tokens_per_step": round(statistics.mean(tokens)),
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2) if CUDA else None,
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2) if CUDA else None,
        "losses": [round(loss, 4) for loss in losses],
    }


@contextmanager
def capped(gib: float | None) -> Iterator[None]:
    """torch may reserve no more than that on the GPU; None is all of it."""
    if not CUDA or gib is None:
        yield
        return
    torch.cuda.set_per_process_memory_fraction(gib * GIB / torch.cuda.mem_get_info()[1])
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def clean() -> None:
    """Give back what is no longer used."""
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def failure(error: BaseException) -> str:
    """Why a row has no figures, in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def machine() -> dict:
    """What the numbers were read on."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    name, driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().split(", ") if CUDA else ("", "")
    versions = {}
    for package in (*PACKAGES, *PEERS):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {"gpu": name, "driver": driver, "versions": versions | {"python": platform.python_version()}}


def written(out: Path) -> dict:
    """A file of results; without one no rows."""
    return json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"machine": {}, "rows": []}


def known(out: Path) -> dict:
    """The machine's rates, as a file of results has them."""
    return {name: value for name, value in written(out)["machine"].items() if name in RATES}


def tell(row: dict, out: Path, rates: dict) -> None:
    """Print a row and add it to a file of results."""
    shown = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in row.items()}
    print("  ".join(f"{name} {value}" for name, value in shown.items()), flush=True)
    save([row], out, rates)


def save(found: list[dict], out: Path, rates: dict | None = None) -> None:
    """Add rows to a file of results, and the machine's `rates` where they were measured.

    The file names the versions of whoever wrote first; rows of another interpreter name those that differ.
    """
    before, here = written(out), machine()
    described = (before["machine"] or here) | (known(out) if rates is None else rates)
    others = {name: version for name, version in here["versions"].items() if described["versions"].get(name) != version}
    found = [row | ({"versions": others} if others else {}) for row in found]
    out.write_text(json.dumps({"machine": described, "rows": before["rows"] + found}, indent=1) + "\n", encoding="utf-8")
