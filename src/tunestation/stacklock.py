"""`python -m tunestation.stacklock`: docker/requirements.lock, made from docker/requirements.txt and docker/requirements-gpu.txt.

uv resolves for every supported Python at once and reports the files of each package; those that the image can install are kept,
by hash alone: where they are downloaded from stays pip's configuration.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from tunestation.settings import PROJECT

WANTED = tuple(PROJECT / "docker" / name for name in ("requirements.txt", "requirements-gpu.txt"))
LEFT_OUT = "nvidia-cutlass-dsl-libs-cu12"
"""The compiler for CUDA 12, which its other parts name as a need beside that for CUDA 13."""
LOCK = PROJECT / "docker" / "requirements.lock"
PYTHONS = ((3, 11), (3, 12), (3, 13))
PLATFORM = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
GLIBC = range(36, 4, -1)
"""Minor versions of glibc 2 whose wheels the image can use; 2.36 is Debian 12's (PEP 600 names the platforms)."""
OLD_NAMES = ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64")


def main() -> None:
    """Write the lock anew; downloads metadata alone."""
    LOCK.write_text(render(tomllib.loads(_resolve())), encoding="utf-8")
    print(f"Wrote {LOCK.relative_to(PROJECT)}")


def wanted() -> str:
    """The text of all requirements."""
    return "\n".join(path.read_text(encoding="utf-8") for path in WANTED)


def digest(wanted: str) -> str:
    """SHA-256 of the requirements themselves: without comments and empty lines."""
    lines = (line.strip() for line in wanted.splitlines())
    return hashlib.sha256("\n".join(line for line in lines if line and not line.startswith("#")).encode()).hexdigest()


def render(resolved: dict) -> str:
    """The text of the lock for a resolution in the format of PEP 751."""
    head = [
        "# Made by `invoke lock-stack`: each package, with the hashes of its files for Linux x86_64 and Python 3.11 to 3.13.",
        f"# requirements.txt and requirements-gpu.txt: {digest(wanted())}",
    ]
    kept = ((package, _wanted_by(package)) for package in resolved["packages"])
    return "\n".join([*head, *(_entry(package, pythons) for package, pythons in kept if pythons)]) + "\n"


def _wanted_by(package: dict) -> set[tuple[int, int]]:
    """The supported Pythons that need `package` on this platform."""
    if "marker" not in package:
        return set(PYTHONS)
    marker = Marker(package["marker"])
    return {python for python in PYTHONS if marker.evaluate(PLATFORM | _version(python))}


def _version(python: tuple[int, int]) -> dict[str, str]:
    short = f"{python[0]}.{python[1]}"
    return {"python_version": short, "python_full_version": f"{short}.0"}


def _entry(package: dict, pythons: set[tuple[int, int]]) -> str:
    marker = "" if pythons == set(PYTHONS) else f" ; {package['marker']}"
    hashes = sorted(set(_hashes(package, pythons)))
    return " \\\n    ".join([f"{package['name']}=={package['version']}{marker}", *(f"--hash=sha256:{value}" for value in hashes)])


def _hashes(package: dict, wanted: set[tuple[int, int]]) -> Iterator[str]:
    """Every wheel that a Python in `wanted` can use; the source too where one of them has no wheel."""
    covered = set()
    for wheel in package.get("wheels", []):
        pythons = _pythons(wheel["url"].rpartition("/")[2])
        if pythons & wanted:
            covered |= pythons
            yield wheel["hashes"]["sha256"]
    if not covered >= wanted and "sdist" in package:
        yield package["sdist"]["hashes"]["sha256"]


def _pythons(filename: str) -> set[tuple[int, int]]:
    tags = parse_wheel_filename(filename)[3]
    return {python for python in PYTHONS if tags & _supported(python)}


def _supported(python: tuple[int, int]) -> set[Tag]:
    platforms = [*(f"manylinux_2_{minor}_x86_64" for minor in GLIBC), *OLD_NAMES]
    name = f"cp{python[0]}{python[1]}"
    return {*cpython_tags(python, [name], platforms), *compatible_tags(python, name, platforms)}


def _resolve() -> str:
    """What uv answers: pylock.toml of PEP 751."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "pylock.toml"
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config", "--universal", "--python-version", "3.11"]
        subprocess.run([*command, "--no-emit-package", LEFT_OUT, "--format", "pylock.toml", "--output-file", result, *WANTED], check=True)
        return result.read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
