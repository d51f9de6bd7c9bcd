"""The same training step by the stacks that are installed, side by side: Tunestation, transformers with peft, the same with Liger's
kernels, TRL, torchtune, Unsloth.

    python bench/peers.py --cases A,F [--python torchtune=/path/to/its/python] --out FILE

Rules: every stack in its default and in its best settings known, on the same weights, token ids and labelled tokens, one optimizer step
for all of a case's tokens; tokens are counted without padding; medians after warming up; the first losses are in the row, for they must
agree. A stack that is not there is in the table with the reason. Each runs in a process of its own, so none takes another's rows with it.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from cases import TABLE, Case, Setting, case_of, named
from measuring import capped, clean, failure, known, save, written
from models import SHAPES
from step import share, shown

HERE = Path(__file__).resolve().parent
STACKS = {
    "transformers": ("transformers + peft", "peer_transformers", "peft", ""),
    "liger": ("transformers + peft + liger", "peer_liger", "liger_kernel.transformers", "Install liger-kernel, and triton with it."),
    "trl": ("trl", "peer_trl", "trl", "Install trl."),
    "torchtune": ("torchtune", "peer_torchtune", "torchtune.training", "It is torchtune 0.6.1 with torchao 0.15 that runs here."),
    "unsloth": ("unsloth", "peer_unsloth", "unsloth", "Install unsloth; it needs a GPU."),
}
"""Key -> its name in rows, the module that runs it, what must be importable for it, and how it comes to be."""


def measure(key: str, names: list[str], shape: str | None, steps: int, warm: int, out: Path) -> None:
    """In a process of its own: the rows of one stack."""
    stack, runner, needed, remedy = STACKS[key]
    try:
        importlib.import_module(needed)
    except Exception as error:  # packages raise what they like when they miss a GPU or another package's version
        save([{"case": name, "stack": stack, "absent": f"{failure(error)}. {remedy}"} for name in names], out)
        return
    module = importlib.import_module(runner)
    for name in names:
        case = case_of(name, shape)
        if case.base == "fp8":
            save([{"case": name, "stack": stack, "absent": "it has no frozen base in 8-bit floats under adapters"}], out)
            continue
        for setting in module.settings(case):
            start = {"case": name, "stack": stack, "note": setting.told(case)}
            save([start | attempt(module, case, setting, steps, warm, known(out))], out)


def attempt(module: ModuleType, case: Case, setting: Setting, steps: int, warm: int, rates: dict) -> dict:
    """What one setting gives, or why it does not run. Each gets a new model: some stacks leave their wrappers in it."""
    clean()
    try:
        model = module.model(case)
        with capped(case.gib if case.capped else None):
            return share(module.measure(case, setting, model, steps * case.more, warm * case.more), case, rates)
    except Exception as error:  # whatever it is, the other settings' rows are wanted
        return {"failed": failure(error)}


def ours(names: list[str], options: list[str], out: Path) -> None:
    """Tunestation's rows, without DeepSpeed and with it."""
    cases = ",".join(each for name in names for each in (name, f"{name}+zero"))
    subprocess.run([sys.executable, str(HERE / "step.py"), "--cases", cases, *options, "--out", str(out)], check=False)


def theirs(key: str, python: str, names: list[str], options: list[str], out: Path) -> None:
    """One stack's rows. If its process ends before its time, the case it was at has failed, and a new one goes on with the next."""
    while names:
        before = len(written(out)["rows"])
        command = [python, str(HERE / "peers.py"), "--stack", key, "--cases", ",".join(names), *options, "--out", str(out)]
        code = subprocess.run(command, check=False).returncode
        new = written(out)["rows"][before:]
        reached = [name for name in names if any(row["case"] == name for row in new)]
        if code == 0:
            return
        at = next((name for name in names if name not in reached), reached[-1] if reached else names[0])
        save([{"case": at, "stack": STACKS[key][0], "failed": f"its process ended with {code}"}], out)
        names = names[names.index(at) + 1 :]


def run(names: list[str], pythons: dict[str, str], options: list[str], warm: int, out: Path) -> int:
    """Measure all stacks, and print the table; the others' steps before those that are measured are `warm`, ours as many as it needs.

    Returns how many rows have figures.
    """
    before = len(written(out)["rows"])
    ours(names, options, out)
    for key in STACKS:
        theirs(key, pythons.get(key, sys.executable), names, [*options, "--warm", str(warm)], out)
    found = written(out)["rows"][before:]
    print("\n" + shown(sorted(found, key=lambda row: names.index(row["case"]))))
    return sum("tokens_per_second" in row for row in found)


def interpreter(text: str) -> tuple[str, str]:
    """STACK=PATH in two. Raises ArgumentTypeError that says what is wrong with it."""
    stack, _, path = text.partition("=")
    if stack not in STACKS:
        raise argparse.ArgumentTypeError(f"there is no stack '{stack}'. Choose from: {', '.join(STACKS)}.")
    if not shutil.which(path):
        raise argparse.ArgumentTypeError(f"'{path}' is no program. Give the stack's Python, as {stack}=/path/to/bin/python.")
    return stack, path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=lambda text: named(text, ()), default="A,C,F", help=f"with commas; all: {','.join(TABLE)}")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--shape", choices=list(SHAPES))
    other = {"type": interpreter, "metavar": "STACK=PATH", "help": "run a stack under another interpreter"}
    parser.add_argument("--python", action="append", default=[], **other)
    parser.add_argument("--stack", choices=list(STACKS), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("step.json"))
    given = parser.parse_args()
    if given.stack:
        sys.exit(measure(given.stack, given.cases, given.shape, given.steps, given.warm, given.out))
    passed = ["--steps", str(given.steps), *(["--shape", given.shape] if given.shape else [])]
    if not run(given.cases, dict(given.python), passed, given.warm, given.out):
        sys.exit(1)
