"""What to change in a recipe so that it fits a GPU: every setting that saves memory is tried in the plan, and what costs least is told.

No torch here. Settings that change nothing of what is learned come first, then those that change how exactly, then how much, then what.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from textwrap import wrap

from tunestation.training.cards import CARDS, Card
from tunestation.training.memory import GIB, SPARE
from tunestation.training.setup import Estimate, Setup

SHORTEST, LOWEST = 128, 8
"""Tokens of a row, and a rank, below which no advice goes."""
FASTER = 1.05
"""How much faster advice must be that changes more of what is learned, to be told as well."""
FAILED = 0.9
"""Share of the memory of a plan that was found not to fit, which advice may take: what is planned is right within 8 %."""
WIDTH = 100
"""Columns of a line."""
MANY = (2, 4, 8)
"""GPUs of one host that are thought of where no single one suffices."""

Change = dict[str, object]
"""Field of a recipe -> value."""


@dataclass(frozen=True)
class Fit:
    """Settings that fit."""

    change: Change
    plan: Estimate

    @property
    def typed(self) -> list[str]:
        """As a task takes it, setting by setting."""
        return [f"--set {name}={str(value).lower()}" for name, value in self.change.items()]


def does_not_fit(tokens: int, gib: float) -> str:
    """What is said in front of advice where a micro-batch of `tokens` has run out of a GPU's memory."""
    return f"a micro-batch of {tokens:,} tokens does not fit into this GPU's {gib:.1f} GiB."


def told(plan: Estimate, failed: bool = False) -> str:
    """Lines on what makes `plan` fit; `failed`: it ran out of memory although it might have been planned to fit.

    None is wider than `WIDTH`, and the first leaves room for what failed in front of it.
    """
    found = fits(plan, failed)
    if found:
        return "\n".join(["What should fit:", *(line for fit in found for line in _lines(fit, _figures(fit.plan, plan)))])
    return "\n".join(["No setting makes it fit.", *wrap(_larger(plan), WIDTH, break_on_hyphens=False)])


def _lines(fit: Fit, figures: str) -> list[str]:
    """Settings as a shell takes them, a line that goes on in the next with a backslash at its end, and what they make of the plan."""
    first, *others = fit.typed
    lines = [f"  {first}"]
    for typed in others:
        if len(f"{lines[-1]} {typed} \\") <= WIDTH:
            lines[-1] += f" {typed}"
        else:
            lines[-1] += " \\"
            lines.append(f"    {typed}")
    whole = f"{lines[-1]}: {figures}"
    return [*lines[:-1], whole] if len(whole) <= WIDTH else [*lines[:-1], f"{lines[-1]}:", f"    {figures}"]


def _figures(new: Estimate, old: Estimate) -> str:
    share, host = new.speed / old.speed - 1, sum(new.host.values()) / GIB
    speed = "as fast" if abs(share) < 0.005 else f"{abs(share):.0%} {'faster' if share > 0 else 'slower'}"
    beside = f" and {host:.1f} GiB of host memory" if host >= 0.05 else ""
    return f"{new.needed:.1f} of {old.card.memory:.4g} GiB{beside}, {speed}"


def fits(plan: Estimate, failed: bool = False) -> list[Fit]:
    """The fastest change of each kind that fits the plan's card, what changes learning least first; a later one only if it is faster."""
    limit = plan.card.memory * (1 - SPARE / 2)
    limit = min(limit, plan.needed * FAILED) if failed else limit
    found: list[Fit] = []
    for kinds in _kinds(plan.setup):
        tried = [_fit(plan, change | beside) for change, beside in product(kinds, _runtime(plan.setup)) if change | beside]
        good = [fit for fit in tried if fit and fit.plan.needed <= limit]
        best = max(good, key=lambda fit: (round(fit.plan.speed / plan.speed, 2), -len(fit.change)), default=None)
        if best and (not found or best.plan.speed > FASTER * found[-1].plan.speed):
            found.append(best)
    return found


def _fit(plan: Estimate, change: Change) -> Fit | None:
    setup = changed(plan.setup, change)
    return Fit(change, Estimate.of(setup, plan.card)) if _possible(setup) else None


FIELDS = {
    "runtime.micro_batch_size": "micro",
    "runtime.gradient_checkpointing": "checkpointing",
    "runtime.zero_stage": "stage",
    "runtime.offload": "offload",
    "train.optimizer": "optimizer",
    "train.base.type": "base",
    "train.method": "method",
    "train.max_tokens": "max_tokens",
}
"""Field of a recipe -> of a Setup; `train.lora.rank` is of its shape."""


def changed(setup: Setup, change: Change) -> Setup:
    """`setup` with other values for fields of the recipe."""
    new = replace(setup, **{FIELDS[name]: value for name, value in change.items() if name in FIELDS})
    if new.checkpointing == "auto":
        new = replace(new, checkpointing=None)
    if "train.lora.rank" in change:
        new = replace(new, shape=replace(new.shape, rank=change["train.lora.rank"]))
    if change.get("train.method") == "qlora":
        new = replace(new, base="nf4")
    return new


def _possible(setup: Setup) -> bool:
    """Whether the recipe would be taken: `Recipe._clashes` says so of a whole one."""
    if setup.batch % (setup.micro * setup.ranks) or (setup.offload == "all" and setup.stage < 3):
        return False
    return not (setup.offload != "none" and (not setup.stage or setup.optimizer != "adamw"))


def _runtime(setup: Setup) -> Iterator[Change]:
    """Combinations of settings that change nothing of what is learned; the first changes nothing at all."""
    smaller = [size for size in range(setup.micro - 1, 0, -1) if setup.batch % (size * setup.ranks) == 0]
    again = [] if setup.checkpointing or (setup.checkpointing is None and not setup.fast) else [True]
    again += ["auto"] if setup.checkpointing is False and setup.fast else []
    stages = [stage for stage in (1, 2, 3) if stage > setup.stage and (setup.ranks > 1 or (stage == 1 and not setup.stage))]
    stages = [stage for stage in stages if stage < 3 or setup.base != "fp8"]
    moves = [] if setup.offload == "all" else ["all"] if setup.offload == "optimizer" else ["optimizer", "all"]
    fields = ("runtime.micro_batch_size", "runtime.gradient_checkpointing", "runtime.zero_stage", "runtime.offload")
    for values in product(*([None, *options] for options in (smaller, again, stages, moves))):
        yield {name: value for name, value in zip(fields, values, strict=True) if value is not None}


def _kinds(setup: Setup) -> Iterator[list[Change]]:
    """Changes of what is learned, those that change least of it first."""
    yield [{}]
    # all states of all weights would be paged back and forth at each step, which no plan reckons with
    optimizers = ("adamw_8bit",) if setup.full else ("adamw_8bit", "paged_adamw_32bit")
    exactly: list[Change] = [{"train.optimizer": name} for name in optimizers if name != setup.optimizer]
    if not setup.full and setup.base != "nf4":
        base = {"train.base.type": "nf4"}
        exactly.append(base if setup.method == "qlora" else {"train.method": "qlora"} | base)
    yield exactly
    shorter = [{"train.max_tokens": size} for size in _halves(setup.max_tokens, SHORTEST)]
    yield shorter + [{"train.lora.rank": rank} for rank in _halves(setup.shape.rank, LOWEST)] * (not setup.full)
    if setup.full:
        yield [{"train.method": "qlora", "train.base.type": "nf4"}]


def _halves(number: int, least: int) -> list[int]:
    found = []
    while number // 2 >= least:
        number //= 2
        found.append(number)
    return found


def _larger(plan: Estimate) -> str:
    """The smallest known card that suffices, or several."""
    known = sorted(CARDS.values(), key=lambda card: (card.memory, -card.rate))
    able = [card for card in known if card.rate_8 or plan.setup.base != "fp8"]
    if found := _first(plan.setup, [card for card in able if card.memory > plan.card.memory]):
        count = "" if plan.setup.ranks == 1 else f"{plan.setup.ranks} x "
        return f"The smallest known card that suffices is {count}{found.card.name}: {found.needed:.1f} of {found.card.memory:g} GiB."
    shared = {"runtime.zero_stage": 3, "runtime.micro_batch_size": 1}
    for ranks in MANY:
        setup = replace(changed(plan.setup, shared), ranks=ranks)
        if ranks > plan.setup.ranks and plan.setup.base != "fp8" and _possible(setup) and (found := _first(setup, able)):
            needed = f"{found.needed:.1f} of each one's {found.card.memory:g} GiB"
            return f"No known card suffices alone; {ranks} x {found.card.name} do with {' '.join(Fit(shared, found).typed)}: {needed}."
    return "No known card suffices either."


def _first(setup: Setup, able: list[Card]) -> Estimate | None:
    return next((found for card in able if (found := Estimate.of(setup, card)).fits), None)
