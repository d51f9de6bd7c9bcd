"""The checks of hardware and software. Each is given what it judges, and returns one Finding."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tunestation.doctor.finding import Finding
from tunestation.doctor.probe import GIB, Gpu, Torch
from tunestation.errors import some
from tunestation.settings import PROJECT

OLDEST, NEWEST = (3, 11), (3, 13)
DRIVERS = {13: 580, 12: 525}
"""CUDA major version -> oldest driver that runs it (CUDA Toolkit release notes, minor version compatibility)."""
SHARED_MEMORY = GIB
REBUILD = "Install the pinned stack again: delete .venv and run any task, or rebuild the image."


def python(version: Sequence[int] = sys.version_info) -> Finding:
    """The running interpreter."""
    said = f"Python {'.'.join(str(part) for part in version[:3])}"
    if OLDEST <= tuple(version[:2]) <= NEWEST:
        return Finding("ok", "python", said)
    return Finding("problem", "python", f"{said} is not supported.", "Use 3.11, 3.12 or 3.13.")


def products(found: Sequence[Gpu], installed: Mapping[str, str], folder: Path = PROJECT / "docker") -> Finding | None:
    """The packages of requirements-gpu.txt, which only GPUs of compute capability 9.0 have a use for; None without one."""
    if not any(one.capability == (9, 0) for one in found):
        return None
    wanted = pins((folder / "requirements-gpu.txt").read_text(encoding="utf-8"))
    amiss = [name for name, pin in wanted.items() if installed.get(name) != pin]
    if not amiss:
        return Finding("ok", "products", f"QuACK {wanted['quack-kernels']}, FlashAttention {wanted['flash-attn-4']}")
    what = f"not installed as pinned: {some(amiss)}; training takes 2 to 5 % more time on such a GPU without them."
    return Finding("warning", "products", what, "Run 'pip install --no-deps -r docker/requirements-gpu.txt', or use the image.")


def host(cores: float, memory: int) -> Finding:
    """Processors and memory."""
    said = f"{cores:g} cores, {memory / GIB:.1f} GiB of memory, {platform.machine()}"
    if memory < 4 * GIB:
        return Finding("warning", "host", f"{said}; loading a model may run out of memory.", "Use a machine or container with more.")
    return Finding("ok", "host", said)


def gpu(found: Sequence[Gpu], why_none: str) -> Finding:
    """Whether there is one."""
    if not found:
        level = "problem" if "fails" in why_none else "warning"
        remedy = "In Docker give the container GPUs (--gpus all, NVIDIA Container Toolkit); on a host install the NVIDIA driver."
        return Finding(level, "gpu", f"{why_none}; training runs on the CPU.", remedy)
    names = [one.name for one in found]
    return Finding("ok", "gpu", ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)))


def driver(found: Sequence[Gpu], cuda: str | None) -> Finding:
    """Whether the driver is new enough for the CUDA version that torch was built with."""
    wanted = DRIVERS.get(int((cuda or "13").partition(".")[0]), DRIVERS[13])
    have = found[0].driver
    if int(have.partition(".")[0]) >= wanted:
        return Finding("ok", "driver", have)
    what = f"driver {have} is older than {wanted}, which CUDA {cuda or '13'} needs."
    return Finding("problem", "driver", what, "Update it on the host, or rent a machine with a newer one: an image cannot bring its own.")


def torch_build(found: Sequence[Gpu], installed: Torch | str) -> Finding:
    """Whether torch works, and on the GPU if there is one."""
    if isinstance(installed, str):
        return Finding("problem", "torch", f"torch cannot be imported: {installed}.", REBUILD)
    if not found:
        return Finding("ok", "torch", installed.version)
    if installed.cuda is None:
        remedy = "Let pip choose the CUDA build (no CPU index in its configuration), delete .venv and run any task."
        return Finding("problem", "torch", f"{installed.version} is the CPU build: the GPU would stay idle.", remedy)
    if installed.failure:
        what = f"{installed.version} cannot compute on the GPU: {installed.failure}."
        return Finding("problem", "torch", what, "See the findings about driver and architecture below.")
    return Finding("ok", "torch", f"{installed.version}, CUDA {installed.cuda}, computes on the GPU")


def architecture(found: Sequence[Gpu], architectures: Sequence[str]) -> Finding:
    """Whether the wheel of torch holds kernels for every GPU."""
    names = {one: f"{one.name} (sm_{one.capability[0]}{one.capability[1]})" for one in found}
    missing = dict.fromkeys(name for one, name in names.items() if not runs(one.capability, architectures))
    if not missing:
        return Finding("ok", "architecture", f"torch has kernels for {', '.join(dict.fromkeys(names.values()))}")
    what = f"this torch has no kernels for {', '.join(missing)}; it has: {', '.join(architectures)}."
    return Finding("problem", "architecture", what, "Use another GPU, or an image with a torch built for it.")


def runs(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether one of `architectures` runs on a GPU of `capability`.

    Machine code (sm_) runs on its major version from its minor version on, PTX (compute_) on everything from it on, and code for
    one architecture alone (suffix a) only there (CUDA C++ Programming Guide, compute capabilities).
    """
    for name in architectures:
        kind, major, minor, suffix = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name).groups()
        made = (int(major), int(minor))
        exact = made == capability
        later = made <= capability and (kind == "compute" or made[0] == capability[0])
        if exact or (later and suffix != "a"):
            return True
    return False


def shared_memory(total: int, gpus: int) -> Finding:
    """/dev/shm: training processes of one machine exchange gradients through it."""
    said = f"/dev/shm has {total / GIB:.2f} GiB"
    if total >= SHARED_MEMORY:
        return Finding("ok", "shared memory", said)
    remedy = "Start the container with --shm-size=8g (or --ipc=host)."
    if gpus > 1:
        return Finding("problem", "shared memory", f"{said}; {gpus} GPUs that train together need more.", remedy)
    return Finding("warning", "shared memory", f"{said}, enough for one GPU only.", remedy)


def pins(text: str) -> dict[str, str]:
    """Package -> version of a requirements file, with or without hashes; local version labels dropped."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\+]+)", text, re.M)
    return {_normal(name): version for name, version in found}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_versions() -> dict[str, str]:
    """Package -> version in this Python; local version labels dropped."""
    return {_normal(found.metadata["Name"]): found.version.partition("+")[0] for found in distributions() if found.metadata["Name"]}


def versions(installed: Mapping[str, str], folder: Path = PROJECT / "docker") -> Finding:
    """Installed packages against requirements.txt, and against the image's requirements.lock, which has more (CUDA libraries)."""
    wanted = pins((folder / "requirements.txt").read_text(encoding="utf-8"))
    lock = folder / "requirements.lock"
    more = pins(lock.read_text(encoding="utf-8")) if lock.is_file() else {}
    absent = [name for name in wanted if name not in installed]
    other = [f"{name} {installed[name]}, not {pin}" for name, pin in (more | wanted).items() if installed.get(name, pin) != pin]
    if absent:
        return Finding("problem", "versions", f"{len(absent)} pinned packages are not installed: {some(absent)}.", REBUILD)
    if other:
        what = f"{len(other)} packages are not as pinned: {some(other)}; results may differ from the locks."
        return Finding("warning", "versions", what, REBUILD)
    return Finding("ok", "versions", f"{len(wanted)} packages as pinned")


def compiler(found: Sequence[Gpu], cuda: str | None) -> Finding:
    """gcc, and on a GPU the nvcc of torch's CUDA version: DeepSpeed compiles its optional kernels with them."""
    if not shutil.which("gcc"):
        return Finding("warning", "compiler", "there is no gcc: DeepSpeed's own kernels and Triton's cannot be built.", "Install gcc.")
    if not found or not cuda:
        return Finding("ok", "compiler", "gcc")
    have = _nvcc()
    if have is None:
        remedy = "Use the image, or install the CUDA toolkit if a recipe needs them (offload, 8-bit optimizers work without)."
        return Finding("warning", "compiler", "there is no nvcc: DeepSpeed's CUDA kernels cannot be built.", remedy)
    if have != cuda:
        what = f"nvcc is of CUDA {have}, torch of CUDA {cuda}: DeepSpeed refuses to build its kernels."
        return Finding("warning", "compiler", what, f"Install the CUDA {cuda} toolkit, or use the image.")
    return Finding("ok", "compiler", f"gcc, nvcc {have}")


def _nvcc() -> str | None:
    tool = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False).stdout if tool else ""
    found = re.search(r"release (\d+\.\d+)", said)
    return found[1] if found else None


def hub(endpoint: str, seconds: float = 5) -> Finding:
    """Whether the model hub answers; any answer counts."""
    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=seconds).close()
    except HTTPError as error:
        if error.code >= 500:
            return _no_hub(endpoint, f"answers {error.code}")
    except (URLError, OSError, ValueError) as error:
        return _no_hub(endpoint, f"does not answer ({getattr(error, 'reason', error)})")
    return Finding("ok", "hub", f"{endpoint} answers")


def _no_hub(endpoint: str, how: str) -> Finding:
    remedy = "Set HF_ENDPOINT to a mirror, or bring what a recipe needs with 'invoke bundle' and run with --offline."
    return Finding("warning", "hub", f"{endpoint} {how}: models and data that are not here yet cannot be fetched.", remedy)


def token(source: str | None) -> Finding:
    """Whether there is a hub token, and where; never the token."""
    return Finding("ok", "token", f"a hub token is in {source}" if source else "no hub token; gated models need one (HF_TOKEN)")
