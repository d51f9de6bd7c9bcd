"""All checks in order, and what is said of them."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tunestation import settings as machine_settings
from tunestation.doctor import checks, probe, providers, storage
from tunestation.doctor.finding import Finding
from tunestation.errors import InputError
from tunestation.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m tunestation.doctor`. Returns 0; with --strict 1 if there is a problem; 2 if a TUNE_* variable is no good."""
    parser = argparse.ArgumentParser(prog="tunestation.doctor", description="Is this machine fit for a run, and will its results last?")
    parser.add_argument("--start", action="store_true", help="the quick checks of a container's start; says only what is wrong")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a run would fail, leave the GPU idle, or vanish")
    parser.add_argument("--offline", action="store_true", help="do not ask the hub")
    asked = parser.parse_args(arguments)
    try:
        settings = machine_settings.load()
    except InputError as error:
        print(error)
        return error.exit_code
    gpus, why_none = probe.gpus()
    torch = probe.torch() if gpus or not asked.start else None  # asking takes seconds; a container without a GPU starts at once
    found = list(_vital(settings, gpus, why_none, torch))
    if not asked.start:
        found += _rest(gpus, torch, asked.offline or settings.offline)
    _tell([one for one in found if _news(one)] if asked.start else found)
    return 1 if asked.strict and any(one.level == "problem" for one in found) else 0


def _news(one: Finding) -> bool:
    """Whether it is worth a word at the start of every container: what `up` has said once is not."""
    return one.level == "problem" or (one.level == "warning" and not (one.subject == "gpu" and machine_settings.without_gpus()))


def _tell(found: Sequence[Finding]) -> None:
    """A line for each finding, and its remedy below it."""
    for one in found:
        print(f"{one.level:8} {one.subject:14} {one.what}")
        if one.remedy:
            print(f"{'':24}{one.remedy}")
    sys.stdout.flush()


def _vital(settings: Settings, gpus: Sequence[probe.Gpu], why_none: str, torch: probe.Torch | str | None) -> Iterator[Finding]:
    """What can make a whole run fail, leave the GPU idle, or vanish."""
    yield checks.python()
    yield checks.gpu(gpus, why_none)
    if torch is not None:
        yield checks.torch_build(gpus, torch)
    if gpus:
        yield checks.driver(gpus, _cuda(torch))
    if gpus and isinstance(torch, probe.Torch) and torch.architectures:
        yield checks.architecture(gpus, torch.architectures)
    yield checks.shared_memory(shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0, len(gpus))
    yield storage.writable(settings)
    yield storage.lasting(settings, providers.recognise(), storage.mounts())
    yield storage.space(settings)


def _cuda(torch: probe.Torch | str | None) -> str | None:
    return torch.cuda if isinstance(torch, probe.Torch) else None


def _rest(gpus: Sequence[probe.Gpu], torch: probe.Torch | str | None, offline: bool) -> Iterator[Finding]:
    installed = checks.installed_versions()
    yield checks.versions(installed)
    yield checks.compiler(gpus, _cuda(torch))
    if products := checks.products(gpus, installed):
        yield products
    yield checks.host(probe.processors(), probe.memory_bytes())
    provider = providers.recognise()
    yield Finding("ok", "provider", provider.name if provider else "none of those in docs/cloud.md")
    yield checks.token(machine_settings.hub_token_place())
    yield Finding("ok", "hub", "not asked (offline)") if offline else checks.hub(machine_settings.hub_endpoint())
