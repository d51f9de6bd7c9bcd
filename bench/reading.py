"""The machine that numbers are read on: its rates, its versions, a clock that does not make it wait, and the file they go to."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import torch

CUDA = torch.cuda.is_available()
RATES = ("matrix_tflops", "copy_tbps")
PACKAGES = ("torch", "triton", "transformers", "peft", "bitsandbytes", "deepspeed", "liger-kernel", "accelerate")


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
    product, copy = _median(lambda: a @ b), _median(lambda: target.copy_(source))
    return {"matrix_tflops": round(2 * 8192**3 / product / 1e12), "copy_tbps": round(2**32 / copy / 1e12, 2)}


def _median(run: Callable) -> float:
    run()
    clock = Clock()
    for _ in range(10):
        run()
        clock.tick()
    return statistics.median(clock.seconds())


def machine() -> dict:
    """What the numbers were read on."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    name, driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().split(", ") if CUDA else ("", "")
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {"gpu": name, "driver": driver, "versions": versions | {"python": platform.python_version()}}


def save(found: list[dict], out: Path, rates: dict | None = None) -> None:
    """Add rows to a file of results, and the machine's `rates` where they were measured."""
    before = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"rows": []}
    known = {name: value for name, value in before.get("machine", {}).items() if name in RATES} if rates is None else rates
    described = machine() | known
    out.write_text(json.dumps({"machine": described, "rows": before["rows"] + found}, indent=1) + "\n", encoding="utf-8")
