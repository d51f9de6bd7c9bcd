"""`python -m tunestation.linting`: every check of style; the exit code is 1 if one of them found something."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tunestation.settings import PROJECT

TOOLS = Path(sys.executable).parent


def main() -> int:
    """Run all checks; each says on its own what is wrong."""
    failed = [Path(command[0]).name for command in _commands() if subprocess.run(command, cwd=PROJECT, check=False).returncode]
    if not _has_compose():
        print("docker-compose.yml was not checked: there is no Docker Compose on this machine.")
    print(f"Found by {', '.join(failed)}." if failed else "No problem found.")
    return bool(failed)


def _commands() -> Iterator[list[str]]:
    scripts = [".ci/run", *_below(".ci", "*.sh"), *_below("docker", "*.sh")]
    yield [str(TOOLS / "ruff"), "check", "src", "tests", "bench", "tasks.py", "docker"]
    yield [str(TOOLS / "shellcheck"), *scripts]
    # recipes are YAML 1.2, which yamllint does not read; `invoke check` does
    yield [str(TOOLS / "yamllint"), "--strict", "docker-compose.yml", ".yamllint.yaml", *_below("docker", "*.y*ml")]
    yield [str(TOOLS / "hadolint"), "Dockerfile"]
    if _has_compose():
        yield from (["docker", "compose", *_files(name), "config", "--quiet"] for name in ("", "cpu", "cdi"))
        served = ["--file", "docker/compose.serve.yaml", "--profile", "vllm", "--profile", "lmdeploy"]
        yield ["env", "TUNE_MERGED=/merged", "TUNE_PASSWORD=password", "docker", "compose", *served, "config", "--quiet"]


def _files(override: str) -> list[str]:
    more = ["--file", f"docker/compose.{override}.yaml"] if override else []
    return ["--file", "docker-compose.yml", *more]


def _below(folder: str, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(PROJECT)) for path in (PROJECT / folder).rglob(pattern))


def _has_compose() -> bool:
    tool = shutil.which("docker")
    return bool(tool) and subprocess.run([tool, "compose", "version"], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
