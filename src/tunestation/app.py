"""One function a task: opens the recipe, calls the rest, prints little."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tunestation import closing, listing, talking
from tunestation.doctor import storage
from tunestation.errors import InputError, ReproductionDiffers
from tunestation.pipeline import lock as locks
from tunestation.pipeline import machine
from tunestation.pipeline.plan import plan
from tunestation.pipeline.run import Done, alone, busy, run
from tunestation.pipeline.stage import Stage
from tunestation.recipe import loading
from tunestation.work import Work, open_recipe, pin


def recipes(like: str = "", datasets: bool = False, models: bool = False) -> None:
    """List the recipes (with `datasets` or `models`: those of the catalogue) that mention `like`."""
    print(listing.datasets(like) if datasets else listing.models(like) if models else listing.recipes(like))


def new(name: str, model: str, data: Sequence[str], method: str) -> None:
    """Write a complete recipe from a model, data sets and a method."""
    from tunestation.creating import new as write

    print(f"wrote {write(name, model, data, method)}\nNext: 'invoke check {name}', then 'invoke reproduce {name}'.")


def check(name: str, assignments: Sequence[str] = (), resolved: bool = False) -> None:
    """Tell every problem of a recipe and of its local data; with `resolved` print it with all defaults."""
    from tunestation.checking import check_data, not_fetched

    work = open_recipe(name, assignments, incomplete=True)
    if resolved:
        print(loading.resolved(work.recipe), end="")
        return
    check_data(work)
    for source in not_fetched(work):
        print(f"not fetched yet, so not checked: {source}")
    print(f"{work.path}: no problems.")


def status(name: str, assignments: Sequence[str] = ()) -> None:
    """Say in words what would run and why; touches nothing."""
    work = open_recipe(name, assignments)
    _tell_steps(work, work.stages)
    for source in work.inputs.pending:
        print(f"{source} is not pinned yet: 'invoke pin {work.recipe.name}' asks the network.")


def _tell_steps(work: Work, stages: Sequence[Stage], force: bool = False) -> None:
    if busy(work.shelf.folder):
        print("A run of this recipe is going on now; as things stand, another one after it would do this:")
    print(listing.steps(plan(stages, work.shelf, force)))


def pin_recipe(name: str) -> None:
    """Write the commits and digests that the recipe's revisions and addresses stand for today into its lock."""
    work = pin(open_recipe(name), again=True)
    locks.write(work.lock_path, {"schema_version": locks.VERSION, "stages": {}} | work.lock | {"resolved": work.pins})
    for source, commit in sorted(work.pins.items()):
        print(f"{source} is {commit}")
    print(f"{work.lock_path}: {len(work.pins)} pinned.")


def reproduce(
    name: str,
    assignments: Sequence[str] = (),
    until: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    offline: bool = False,
    update_lock: bool = False,
    then_chat: bool = False,
    port: int = 7860,
) -> None:
    """Run all that has to be run, compare with the lock, and say what came of it."""
    if update_lock and assignments:
        raise InputError("a lock is that of the recipe as it stands.", "--update-lock", "Write into the recipe what --set says.")
    work = open_recipe(name, assignments, offline)
    if dry_run:
        _tell_steps(work, work.until(until), force)
        return
    if update_lock and until:
        raise InputError("a lock holds the whole recipe.", "--update-lock", "Leave --until out.")
    if then_chat:
        talking.valid_port(port)
    work = pin(work)
    stages = work.until(until)
    done = _run(work, stages, [stage.name for stage in stages] if force else [])
    print(closing.stages(done))
    if work.settings.node:
        return  # node 0 has the results, compares and chats
    comparisons = _settle(work, until, update_lock)
    print(closing.warnings(work), end="")
    print(closing.results(work))
    if locks.differs(comparisons):
        raise ReproductionDiffers("this run does not reproduce its lock.", str(work.lock_path), "See the table; --update-lock accepts it.")
    if then_chat:
        chat(name, port, assignments)


def _run(work: Work, stages: list, forced: Sequence[str]) -> list[Done]:
    from tunestation.checking import check_settings

    check_settings(work)
    if said := storage.warning(work.settings):
        print(said)
    gpus = len(machine.gpus())
    if not work.settings.processes and work.processes < gpus and any(stage.distributed for stage in stages):
        batch = work.recipe.train.global_batch_size
        print(f"Training uses {work.processes} of {gpus} GPUs: more cannot share a step of {batch} evenly (train.global_batch_size).")
    with alone(work.shelf.folder):
        return list(run(stages, work.shelf, work.runtime, work.workers, forced))


def _settle(work: Work, until: str | None, update_lock: bool) -> list[locks.Comparison]:
    """Compare with the lock; write it if there is none yet, or if asked to."""
    records = work.records(work.until(until))
    if work.overridden:
        print("\nNot compared with the lock: --set changed the recipe.")
        return []
    if update_lock or (not work.lock.get("stages") and until is None):
        locks.write(work.lock_path, locks.make(records, work.pins, work.shelf.digests.of(work.path), work.lock))
        print(f"\nLock written: {work.lock_path}")
        return []
    comparisons = locks.compare(work.stages, records, work.lock)
    print(closing.comparisons(comparisons, work.lock_path))
    return comparisons


def stage(name: str, last: str, assignments: Sequence[str] = (), force: bool = False, offline: bool = False) -> None:
    """Run one stage and whatever it needs."""
    work = pin(open_recipe(name, assignments, offline))
    done = _run(work, work.until(last), [last] if force else [])
    print(closing.stages(done))


def inspect(name: str, row: int | None = None, tokens: bool = False, tokenizer: str | None = None, assignments: Sequence[str] = ()) -> None:
    """Show what the data of a recipe becomes: numbers and a page, or one row."""
    from tunestation.inspecting import inspect as look

    if row is not None and row < 1:
        raise InputError(f"there is no row {row}: rows are counted from 1.", "--row")
    look(open_recipe(name, assignments), row, tokens, tokenizer)


def verify(name: str) -> None:
    """Hash every result again and compare with its SHA256SUMS and with the lock."""
    from tunestation.verifying import damage

    work = open_recipe(name)
    records = work.records()
    if not records:
        raise InputError(f"there is no result of '{work.recipe.name}' to verify.", remedy=f"Run 'invoke reproduce {name}' first.")
    damage(work, records)
    if absent := [stage.name for stage in work.stages if stage.name not in records]:
        print(f"no result yet, so not verified: {', '.join(absent)}")
    if not work.lock.get("stages"):
        print(f"\nAll bytes are as they were made. There is no lock to compare with: 'invoke reproduce {name}' writes {work.lock_path}.")
        return
    comparisons = locks.compare(work.stages, records, work.lock)
    print(closing.comparisons(comparisons, work.lock_path))
    if locks.differs(comparisons):
        raise ReproductionDiffers("the results are not those of the lock.", str(work.lock_path))


def chat(
    name: str,
    port: int = 7860,
    assignments: Sequence[str] = (),
    base: bool = False,
    load: str | None = None,
    public: bool = False,
    terminal: bool = False,
) -> None:
    """Open the chat page of a finished recipe, or talk in the terminal, and wait until it is stopped."""
    talking.page(open_recipe(name, assignments), port, base, load, public, terminal)


def serve(
    name: str, port: int = 8000, assignments: Sequence[str] = (), base: bool = False, load: str | None = None, public: bool = False
) -> None:
    """Serve the OpenAI-compatible API of a finished recipe and wait until it is stopped."""
    talking.serve(open_recipe(name, assignments), port, base, load, public)


def ask(
    name: str, prompt: str, base: bool = False, assignments: Sequence[str] = (), load: str | None = None, as_json: bool = False
) -> None:
    """Print the model's answer to `prompt`, or to each line of the file in `@file`."""
    talking.answers(open_recipe(name, assignments), prompt, base, load, as_json)


def sync(name: str, source: str = "", to: str = "", every: int = 0) -> None:
    """Bring what is whole of a recipe's runs here, or elsewhere, while work goes on; again `every` seconds if that is not 0."""
    from tunestation.syncing.main import sync as copy

    copy(name, source, to, every)


def bundle(name: str, to: str = "", wheels: bool = True) -> None:
    """Fetch what a recipe needs, and pack it with code and wheels into one folder with digests."""
    from tunestation.bundling import bundle as pack

    work = pin(open_recipe(name))
    _run(work, work.until("fetch"), [])
    pack(work, Path(to or f"{work.recipe.name}-bundle"), wheels)


def import_xtuner(path: str, model: str, name: str = "", alpha: float | None = None) -> None:
    """Bring the adapter, or the full fine-tuning, of an XTuner checkpoint to the model volume."""
    from tunestation.importing import import_xtuner as bring

    bring(path, model, name, alpha)


def plan_recipe(name: str, card: str = "", gpus: int = 1, price: str = "", assignments: Sequence[str] = ()) -> None:
    """Say what training would need and take on `gpus` of `card` (all known cards if empty), at `price` for a GPU's hour."""
    from tunestation.planning import told
    from tunestation.training.cards import chosen

    known = [chosen(card).name] if card else []
    if price and not re.fullmatch(r"\d+(\.\d*)?|\.\d+", price):
        raise InputError(f"'{price}' is no price.", "--price", "Give what an hour of one GPU costs, as 0.40.")
    cost = float(price) if price else None
    print(told(open_recipe(name, assignments, incomplete=True), known, gpus, cost))


def bench(shape: str, cases: str) -> None:
    """Measure this machine's rates and training steps of a known shape of model."""
    import subprocess
    import sys

    from tunestation.settings import PROJECT, child_environment, load

    out = load().cache / "bench.json"
    new = out.with_suffix(".new.json")
    new.parent.mkdir(parents=True, exist_ok=True)
    new.unlink(missing_ok=True)
    command = [sys.executable, str(PROJECT / "bench" / "step.py"), "--cases", cases, "--out", str(new)]
    command += ["--shape", shape] if shape else []
    code = subprocess.run(command, env=child_environment({}), check=False).returncode
    if new.exists():
        new.replace(out)
        print(f"The numbers are in {out} as well.")
    sys.exit(code)


def docs() -> None:
    """Write the generated pages: the recipe reference and the JSON schema."""
    from tunestation.reference import write_all

    for path in write_all():
        print(f"wrote {path}")
