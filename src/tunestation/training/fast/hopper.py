"""Kernels in CuTe DSL for Hopper GPUs (H100, H200), of packages in docker/requirements-gpu.txt: whether they are here and do their work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

CAPABILITY = (9, 0)
"""Of the GPUs on which these have been measured."""


def has(device: torch.device, dtype: torch.dtype, package: str) -> bool:
    """Whether `package` is installed, and `device` and `dtype` are such as its kernels have been measured with."""
    if device.type != "cuda" or dtype != torch.bfloat16 or torch.cuda.get_device_capability(device) != CAPABILITY:
        return False
    return installed(package)


def installed(package: str) -> bool:
    """Whether pip has it."""
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def agrees(device: torch.device, what: str, otherwise: str, agree: Callable[[torch.device], bool]) -> bool:
    """Whether `agree` finds that `what` gives what it shall on `device`; if not, or if it does not run, that is said, and what is taken."""
    _announce()
    try:
        with torch.cuda.device(device):
            same = agree(device)
    except Exception as error:  # another version, a missing compiler, a driver that it does not know: what they raise is not documented
        why = f"do not run here ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'})"
    else:
        why = "" if same else "give other results here"
    if why:
        print(f"  note: {what} {why}; {otherwise}", flush=True)
    return not why


@cache
def _announce() -> None:
    """Once in a process: else nobody would know what a first training waits for."""
    print("  trying kernels for this GPU; the first time on a machine they are compiled, which takes a minute or two", flush=True)


def near(wanted: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> bool:
    """Whether results are those that are wanted, each to within the rounding of bfloat16."""
    pairs = [(one.cpu().float(), other.cpu().float()) for one, other in zip(wanted, found, strict=True)]
    return all(bool((mine - theirs).norm() <= 1e-2 * theirs.norm()) for theirs, mine in pairs)
