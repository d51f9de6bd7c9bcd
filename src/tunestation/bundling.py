"""`invoke bundle`: a folder with everything that a recipe needs on a machine without a network.

The folder is a checkout of its own, with the recipe alone in recipes/, the wheels in wheels/ (the runner installs from there), and the
fetched model and data in volumes/, where runs look for them by default.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tunestation.errors import InputError, TunestationError
from tunestation.fetching.progress import amount
from tunestation.pipeline.digest import SUMS, file_digest, files_below, write_sums
from tunestation.pipeline.files import write_json
from tunestation.pipeline.run import read_record
from tunestation.recipe.schema import TEMPLATE_FILE
from tunestation.settings import PROJECT, WHEELS, child_environment
from tunestation.work import Work

CODE = ("tasks.py", "pyproject.toml", "README.md", "LICENSE", "src", "docker", "recipes/recipe.schema.json")
HOW = """# {name}, for a machine without a network

Made for Python {python} on {system} ({machine}). In this folder:

    sha256sum --quiet -c SHA256SUMS
    python3 -m venv .venv && .venv/bin/pip install --no-index --find-links wheels invoke
    .venv/bin/invoke reproduce {name} --offline
"""
HOW_WITHOUT_WHEELS = """# {name}, for a machine without a network that has the pinned packages

In this folder:

    sha256sum --quiet -c SHA256SUMS
    TUNE_RUNNER=here invoke reproduce {name} --offline
"""


def bundle(work: Work, folder: Path, wheels: bool) -> None:
    """Write the bundle of a recipe whose `fetch` is done. Raises InputError if `folder` is not empty, TunestationError if a part fails."""
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise InputError("there is something in this folder already.", str(folder), "Name a new one with --to.")
    for name in CODE:
        _copy(PROJECT / name, folder / name)
    _recipe(work, folder / "recipes")
    _volumes(work, folder)
    if wheels:
        _wheels(folder / WHEELS)
    here = {"name": work.recipe.name, "python": platform.python_version(), "system": platform.system(), "machine": platform.machine()}
    write_json(folder / "bundle.json", here | {"wheels": wheels})
    (folder / "BUNDLE.md").write_text((HOW if wheels else HOW_WITHOUT_WHEELS).format(**here), encoding="utf-8")
    write_sums(folder, ())
    names = files_below(folder)
    size = sum((folder / name).stat().st_size for name in names)
    print(f"{folder}: {len(names)} files, {amount(size)}, digests in {SUMS}. How to run it: {folder / 'BUNDLE.md'}")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    else:
        shutil.copyfile(source, target)


def _recipe(work: Work, recipes: Path) -> None:
    """The recipe, its lock, and the files beside it that it names."""
    for path in (work.path, work.lock_path):
        if path.is_file():
            _copy(path, recipes / path.name)
    for ref in _beside(work):
        relative = ref.partition(":")[2]
        if not (recipes / relative).exists():
            _copy(work.shelf.volumes.path(ref), recipes / relative)


def _beside(work: Work) -> Iterator[str]:
    named = [file["ref"] for part in (*work.inputs.parts, *work.inputs.checks) for file in part["files"]]
    named += [f"recipe:{work.recipe.template}"] if work.recipe.template.endswith(TEMPLATE_FILE) else []
    named += [f"recipe:{work.recipe.runtime.deepspeed_config}"] if work.recipe.runtime.deepspeed_config else []
    named += [work.inputs.model_ref] if work.inputs.model_ref else []
    named += [work.inputs.adapter["ref"]] if work.inputs.adapter else []
    yield from (ref for ref in named if ref.startswith("recipe:"))


def _volumes(work: Work, folder: Path) -> None:
    """The files that `fetch` saw on the volumes, each checked against the digest that it wrote down, and its result."""
    fetched = work.folder("fetch")
    wanted = {ref: sha256 for ref, sha256 in read_record(fetched)["volumes"].items() if ref.startswith(("models:", "datasets:"))}
    wanted |= {
        file["ref"]: file["sha256"]
        for part in (*work.inputs.parts, *work.inputs.checks)
        for file in part["files"]
        if file["ref"].startswith("datasets:")
    }
    adapter = work.inputs.adapter
    if adapter and adapter["ref"].startswith("models:"):
        wanted |= {f"{adapter['ref']}/{name}": sha256 for name, sha256 in adapter["files"].items()}
    for ref, sha256 in wanted.items():
        volume, _, relative = ref.partition(":")
        source, target = work.shelf.volumes.path(ref), folder / "volumes" / volume / relative
        _copy(source, target)
        if file_digest(target) != sha256:
            raise TunestationError("has other bytes than when it was fetched.", str(source), "Run fetch again with --force.")
    runs = folder / "volumes" / "runs" / work.recipe.name
    _copy(fetched, runs / fetched.name)
    if (work.shelf.folder / "pins.json").is_file():
        _copy(work.shelf.folder / "pins.json", runs / "pins.json")


def _wheels(folder: Path) -> None:
    """The pinned packages as wheels for this Python and system, from wherever pip is configured to get them."""
    folder.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-deps", "--quiet"]
    asked = [*pip, "--wheel-dir", str(folder), "-r", str(PROJECT / "docker" / "requirements.txt")]
    print("Collecting the wheels of docker/requirements.txt ...", flush=True)
    if subprocess.run(asked, env=child_environment({}), check=False).returncode:
        what = "pip could not collect the wheels; see its message above."
        raise TunestationError(what, remedy="Mend pip's configuration, or leave them out with --no-wheels; then name a new folder.")
