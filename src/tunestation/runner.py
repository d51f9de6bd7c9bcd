"""Where a task runs. Standard library only: it works before anything is installed.

Once `invoke build` has made the image, tasks run in a container of it; before that, the first task installs the pinned stack into
.venv with plain pip, so pip's own configuration decides between the CUDA and a CPU build of torch. TUNE_RUNNER chooses: docker, venv,
or here for the running Python as it is. Developers' tools (test, lint, lock-stack), sync, bundle and import-xtuner always run in .venv.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from tunestation import container, errors
from tunestation.settings import PROJECT, WHEELS, child_environment, runner

PYTHON = PROJECT / ".venv" / "bin" / "python"
OUTSIDE = ("sync", "bundle", "import_xtuner")
"""Functions of tunestation.app that never run in the image: they need the caller's SSH keys, or read or write any folder of the host."""


class Whole(int):
    """Default of a task's option that is a whole number: invoke makes what was typed into one, and a wrong word is told."""

    def __new__(cls, typed: str | int) -> Whole:
        try:
            return super().__new__(cls, typed)
        except ValueError:
            _leave(f"{_option(typed)}: '{typed}' is not a whole number.", 2)


class Real(float):
    """The same for any number."""

    def __new__(cls, typed: str | float) -> Real:
        try:
            return super().__new__(cls, typed)
        except ValueError:
            _leave(f"{_option(typed)}: '{typed}' is not a number.", 2)


def _option(typed: str | float) -> str:
    """The option for which `typed` was given."""
    for before, word in pairwise(sys.argv):
        if word == typed or word.endswith(f"={typed}"):
            return before if word == typed else word.partition("=")[0]
    return "an option"


def refuse_wrong_words() -> None:
    """Let invoke end with 2, not 1, where it does not understand what was typed: it has no setting, but refuses in one place."""
    from invoke.parser.parser import ParseMachine

    remedy = "'invoke --list' names the tasks, 'invoke --help TASK' explains one."
    ParseMachine.error = lambda _, message: _leave(f"{_named(message)} {remedy}", 2)


def _named(message: str) -> str:
    """invoke's message as a sentence, options in it as they are typed."""
    plain = re.sub(r"<Argument: (\w+)[^>]*>", lambda found: f"--{found[1].replace('_', '-')}", message)
    return plain if plain.endswith((".", "!")) else f"{plain}."


def call(function: str, *arguments: object, **options: object) -> None:
    """Call `tunestation.app.<function>` on the pinned stack, in the image if there is one."""
    with _in_words():
        if function not in OUTSIDE and _in_docker():
            sys.exit(container.run(sys.argv[1:]))
        stack()
        from tunestation import app

        getattr(app, function)(*arguments, **options)


def manage(function: str, *arguments: object) -> None:
    """Call `tunestation.container.<function>`: what makes and starts containers runs outside of them."""
    with _in_words():
        getattr(container, function)(*arguments)


def _in_docker() -> bool:
    if runner() == "docker":
        container.made_or_refuse()
    return runner() == "docker" or (runner() == "" and container.made())


@contextmanager
def _in_words() -> Iterator[None]:
    """An error becomes its message and exit code."""
    try:
        yield
        sys.stdout.flush()
    except errors.TunestationError as error:
        _leave(str(error), error.exit_code)
    except KeyboardInterrupt:
        _leave("Stopped.", 1)
    except BrokenPipeError:  # as of `| head`: whoever read has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes at its end
        sys.exit(1)
    except OSError as error:
        what = f"{error.filename or 'a file'} cannot be used: {error.strerror or error}."
        _leave(f"{what} See what lies there, who may write it, and whether the disk is full.", 1)


def tool(*arguments: str) -> None:
    """Run a developer's tool (`-m pytest ...`) in the checkout and end with its exit code."""
    stack("requirements-dev")
    sys.exit(subprocess.run([sys.executable, *arguments], cwd=PROJECT, env=child_environment({}), check=False).returncode)


def diagnose(*arguments: str) -> None:
    """Look at this machine as runs would see it, in the image if there is one; installs nothing. Ends with the doctor's exit code."""
    with _in_words():
        if _in_docker():
            sys.exit(container.run(sys.argv[1:]))
    python = sys.executable if runner() == "here" or not PYTHON.exists() else str(PYTHON)
    command = [python, "-m", "tunestation.doctor", *arguments]
    sys.exit(subprocess.run(command, cwd=PROJECT, env=child_environment({}), check=False).returncode)


def stack(*names: str) -> None:
    """Have the packages of docker/<name>.txt, and run in .venv: this process is replaced by one of .venv if need be."""
    if runner() == "here":
        return
    if not PYTHON.exists():
        _make(PYTHON.parents[1])
    for name in ("requirements", *names):
        _install(PROJECT / "docker" / f"{name}.txt")
    if Path(sys.prefix).resolve() != PYTHON.parents[1].resolve():
        os.execv(PYTHON, [str(PYTHON), "-m", "invoke", *sys.argv[1:]])


def _make(folder: Path) -> None:
    print(f"Making {folder} ...", flush=True)
    try:
        venv.create(folder, with_pip=True)
    except (OSError, subprocess.CalledProcessError):
        shutil.rmtree(folder, ignore_errors=True)  # a half one would be taken for whole the next time
        _leave(f"{folder} could not be made. Install venv for this Python (Debian and Ubuntu: apt-get install python3-venv).", 1)


def _install(wanted: Path) -> None:
    mark = PYTHON.parents[1] / f".{wanted.stem}-{hashlib.sha256(wanted.read_bytes()).hexdigest()[:16]}"
    if mark.exists():
        return
    print(f"Installing {wanted.relative_to(PROJECT)} into .venv; this happens once ...", flush=True)
    bundled = ["--no-index", "--find-links", PROJECT / WHEELS] if (PROJECT / WHEELS).is_dir() else []
    command = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", *bundled, "-r", wanted]
    if subprocess.run(command, check=False).returncode:
        _leave(f"pip could not install {wanted}. See its message above; the same command goes on from there.", 1)
    mark.touch()


def _leave(message: str, code: int) -> NoReturn:
    """End the task as invoke wants it: a message on stderr and an exit code, no traceback."""
    from invoke import Exit

    raise Exit(message, code) from None
