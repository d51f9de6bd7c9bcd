"""What this machine is: written beside results as information, and the world size of training."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import subprocess
from functools import cache
from itertools import takewhile
from pathlib import Path

from tunestation.pipeline.stage import tool_versions
from tunestation.pipeline.workers import Workers
from tunestation.settings import visible_gpus_variable

STACK = (
    "torch", "transformers", "peft", "bitsandbytes", "deepspeed", "accelerate", "quack-kernels", "flash-attn-4",
    "datasets", "tokenizers", "safetensors", "gradio",
)  # fmt: skip


@cache
def gpus() -> tuple[str, ...]:
    """Names and driver of the NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves visible, through nvidia-smi; empty without any."""
    tool = shutil.which("nvidia-smi")
    if not tool or visible_gpus_variable() == "":
        return ()
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False)
    names = tuple(line.strip() for line in lines.stdout.splitlines() if line.strip()) if lines.returncode == 0 else ()
    chosen = visible_gpus_variable()
    return names if chosen is None else _chosen(names, chosen)


def _chosen(names: tuple[str, ...], chosen: str) -> tuple[str, ...]:
    """Those with the listed numbers, up to the first that is none, as CUDA has it; of GPUs listed by their UUID as many."""
    parts = chosen.split(",")
    if parts[0].startswith(("GPU-", "MIG-")):
        return names[: len(parts)]
    numbers = takewhile(lambda part: part.strip().isdecimal() and int(part) < len(names), parts)
    return tuple(names[int(number)] for number in numbers)


@cache
def processor() -> str:
    """The CPU in so much detail as can change the last bits: model, instruction sets, count of cores."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    fields = dict(re.findall(r"^(vendor_id|cpu family|model|model name|stepping|flags)\s*: (.*)$", text, re.M))
    wide = [flag for flag in fields.get("flags", "").split() if re.match(r"avx2$|avx512f$|avx512_bf16$|amx_bf16$|fma$", flag)]
    name = fields.get("model name", platform.processor() or platform.machine())
    detail = "/".join(fields.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return f"{name} ({detail}; {' '.join(sorted(set(wide)))}; {os.cpu_count()} cores)"


def kind(workers: Workers) -> str:
    """Kind of device and world size: two results of one kind and equal inputs must have equal bytes."""
    names = gpus()
    device = names[0].rsplit(",", 1)[0] if names else processor()
    return f"{workers} x {device}"


def python(version: str = platform.python_version()) -> str:
    """`3.11` of `3.11.7`, by default of the running Python: its bug fixes change no result."""
    return ".".join(version.split(".")[:2])


def describe(workers: Workers) -> dict:
    """What is written beside a result, and never compared."""
    return {
        "kind": kind(workers),
        "gpus": list(gpus()),
        "processor": processor(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": tool_versions(STACK),
    }


def peak_memory() -> int:
    """Most bytes that this process had resident since it started, pages of mapped files included."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent at the time of the fork
        return int(re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"), re.M)[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
