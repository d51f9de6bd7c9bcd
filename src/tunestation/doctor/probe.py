"""Reads what this machine is: GPUs, the torch that would use them, memory, processors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tunestation.settings import visible_gpus_variable

GIB = 1024**3


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi tells it."""

    name: str
    driver: str
    capability: tuple[int, int]
    """Compute capability, (9, 0) for an H100."""


@dataclass(frozen=True)
class Torch:
    """The torch that runs would use."""

    version: str
    cuda: str | None
    """CUDA version that it was built with, None for the CPU build."""
    architectures: tuple[str, ...]
    """What its kernels were compiled for, as `sm_90` (machine code) and `compute_90` (PTX)."""
    failure: str
    """What a first small computation on the GPU failed with; empty if it worked, or without a GPU."""


def gpus() -> tuple[list[Gpu], str]:
    """The visible GPUs, and why there are none."""
    tool = shutil.which("nvidia-smi")
    if visible_gpus_variable() in ("", "-1"):
        return [], "CUDA_VISIBLE_DEVICES hides all GPUs"
    if not tool:
        return [], "no NVIDIA GPU (there is no nvidia-smi)"
    query = [tool, "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip() or f"exit code {done.returncode}"
        return [], f"nvidia-smi fails: {said.splitlines()[0]}"
    found = [_gpu(line) for line in done.stdout.splitlines() if line.strip()]
    return found, "" if found else "nvidia-smi lists no GPU"


def _gpu(line: str) -> Gpu:
    name, driver, capability = (part.strip() for part in line.rsplit(",", 2))
    major, _, minor = capability.partition(".")
    return Gpu(name, driver, (int(major), int(minor)))


ASK_TORCH = """
import json, torch
failure = ""
if torch.version.cuda:
    try:
        torch.ones(8, device="cuda").sum().item()
    except Exception as error:
        failure = str(error).strip().splitlines()[0]
print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.get_arch_list(), failure]))
"""


def torch() -> Torch | str:
    """The installed torch, asked in a process of its own (it takes seconds to import); why it does not answer otherwise."""
    done = subprocess.run([sys.executable, "-c", ASK_TORCH], capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    version, cuda, architectures, failure = json.loads(done.stdout.splitlines()[-1])
    return Torch(version, cuda, tuple(architectures), failure)


def memory_bytes(root: Path = Path("/")) -> int:
    """What this process may use: the machine's memory, or the limit of its container."""
    lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
    total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:"))
    limits = (_text(root / f"sys/fs/cgroup/{name}") for name in ("memory.max", "memory/memory.limit_in_bytes"))
    return min([total, *(int(limit) for limit in limits if limit.isdecimal())])


def processors(root: Path = Path("/")) -> float:
    """Cores that this process may use: its affinity, or the quota of its container."""
    cores = float(len(os.sched_getaffinity(0)))
    quota, _, period = _text(root / "sys/fs/cgroup/cpu.max").partition(" ")
    return min(cores, int(quota) / int(period)) if quota.isdecimal() else cores


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""
