"""The tasks of Tunestation. `invoke --list` shows them; `invoke --help TASK` explains one.

The first task that needs it installs the pinned stack into .venv with plain pip, so pip's own configuration decides
between the CUDA and a CPU build of torch. TUNE_RUNNER=here uses the running Python as it is.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

from invoke import Exit, task

HERE = Path(__file__).resolve().parent
PYTHON = HERE / ".venv" / "bin" / "python"
SET = {"set": "key=value on top of the recipe, as train.epochs=1; may be given several times"}
RUN = SET | {"force": "run again even if nothing changed", "offline": "touch no network"}


def _stack(*names):
    """Have the packages of docker/<name>.txt, and run in .venv: this process is replaced by one of .venv if need be."""
    if os.environ.get("TUNE_RUNNER") == "here":
        return
    if not PYTHON.exists():
        print(f"Making {PYTHON.parents[1]} ...", flush=True)
        venv.create(PYTHON.parents[1], with_pip=True)
    for name in ("requirements", *names):
        _install(HERE / "docker" / f"{name}.txt")
    if Path(sys.prefix).resolve() != PYTHON.parents[1].resolve():
        os.execv(PYTHON, [str(PYTHON), "-m", "invoke", *sys.argv[1:]])


def _install(wanted):
    mark = PYTHON.parents[1] / f".{wanted.stem}-{hashlib.sha256(wanted.read_bytes()).hexdigest()[:16]}"
    if mark.exists():
        return
    print(f"Installing {wanted.relative_to(HERE)} into .venv; this happens once ...", flush=True)
    if subprocess.run([PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "-r", wanted], check=False).returncode:
        raise Exit(f"pip could not install {wanted}. See its message above; the same command goes on from there.", 1)
    mark.touch()


def _call(function, *arguments, **options):
    """Call a function of tunestation.app; its errors become a message and an exit code."""
    _stack()
    sys.path.insert(0, str(HERE / "src"))
    from tunestation import app, errors

    try:
        getattr(app, function)(*arguments, **options)
    except errors.TunestationError as error:
        raise Exit(str(error), error.exit_code) from None
    except KeyboardInterrupt:
        raise Exit("Stopped.", 1) from None


def _run(*arguments):
    raise Exit(code=subprocess.run([PYTHON if PYTHON.exists() else sys.executable, *arguments], cwd=HERE, check=False).returncode)


@task(help={"like": "only those that mention this text"})
def recipes(_, like=""):
    """List the recipes with summary, model, data and last result."""
    _call("recipes", like)


@task(help=SET | {"resolved": "print the recipe with all defaults"}, iterable=["set"])
def check(_, recipe, set=None, resolved=False):
    """Tell every problem of a recipe at once; runs nothing."""
    _call("check", recipe, set, resolved)


@task
def pin(_, recipe):
    """Write the commits that the recipe's revisions stand for today into its lock."""
    _call("pin_recipe", recipe)


@task(help=SET, iterable=["set"])
def status(_, recipe, set=None):
    """Say what would run, and why; runs nothing."""
    _call("status", recipe, set)


@task(
    help=RUN
    | {"until": "stop after this stage", "dry-run": "only say what would run", "update-lock": "accept the results as the new lock"}
    | {"chat": "open the chat page afterwards", "port": "of the chat page"},
    iterable=["set"],
)
def reproduce(_, recipe, set=None, until=None, force=False, dry_run=False, offline=False, update_lock=False, chat=False, port=7860):
    """Take a recipe from its data to a model: run what has to be run, and compare with the lock."""
    _call("reproduce", recipe, set, until, force, dry_run, offline, update_lock, chat, port)


def _stage(name, text):
    def body(_, recipe, set=None, force=False, offline=False):
        _call("stage", recipe, name, set, force, offline)

    body.__doc__ = text
    return task(body, name=name, help=RUN, iterable=["set"])


fetch = _stage("fetch", "Bring the recipe's model and data to the volumes.")
prepare = _stage("prepare", "Turn the data into packed token ids with a loss mask.")
train = _stage("train", "Train; goes on from the last checkpoint if it was interrupted.")
convert = _stage("convert", "Write the clean adapter of a checkpoint.")
merge = _stage("merge", "Join base and adapter into one model folder.")
evaluate = _stage("evaluate", "Ask the merged and the untuned model the recipe's questions.")


@task
def verify(_, recipe):
    """Hash every result again and compare it with the lock."""
    _call("verify", recipe)


@task(help=SET | {"port": "of the page, on 127.0.0.1", "base": "the untuned model"}, iterable=["set"])
def chat(_, recipe, port=7860, base=False, set=None):
    """Open the chat page of a finished recipe."""
    _call("chat", recipe, port, set, base)


@task(help=SET | {"prompt": "the question, or @file with one a line", "base": "the untuned model"}, iterable=["set"])
def ask(_, recipe, prompt, base=False, set=None):
    """Print one answer of a finished recipe's model."""
    _call("ask", recipe, prompt, base, set)


@task
def docs(_):
    """Write the generated pages: recipe reference and JSON schema."""
    _call("docs")


@task(help={"only": "a folder or file of tests"})
def test(_, only="tests"):
    """Run the tests."""
    _stack("requirements-dev")
    _run("-m", "pytest", only)


@task
def lint(_):
    """Check style."""
    _stack("requirements-dev")
    _run("-m", "ruff", "check", "src", "tests", "tasks.py")
