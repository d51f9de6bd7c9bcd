"""Where the time of a training step goes, product by product and pass by pass: `python bench/parts.py --case G --out FILE`.

Each is timed in its place in the step, at the clock rate that the step leaves the GPU, and those of one size are added up. What autograd,
the optimizer and launches of weights take is in the step's time alone.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from cases import case_of, rows
from measuring import Clock, limits, tell
from models import SHAPES
from step import WARM, Models, Plain, keep

from tunestation.training.batches import lay, placed
from tunestation.training.fast import gated, ops
from tunestation.training.fast.attention import ByTorch
from tunestation.training.fast.flash import Flash
from tunestation.training.learned import learned

STEPS = 3
Parts = dict[tuple, list[Clock]]
PASSES = ("rms_norm", "rms_norm_backward", "rotate", "turn_back", "turn_back_in_place", "copy", "scatter", "cross_entropy", "glu")
PLACES = [(ops, "product"), (ops, "outer"), (gated, "product"), (gated, "backward")]
PLACES += [(way, name) for way in (ByTorch, Flash) for name in ("__init__", "gradients")] + [(ops, name) for name in PASSES]


@contextmanager
def timed(found: Parts) -> Iterator[None]:
    """Every call of `PLACES` adds its time to `found`, unless it is made within another one's."""
    before, inside = [getattr(owner, name) for owner, name in PLACES], []
    for (owner, name), real in zip(PLACES, before, strict=True):
        setattr(owner, name, _watched(f"{owner.__name__.rpartition('.')[2]}.{name}", real, found, inside))
    try:
        yield
    finally:
        for (owner, name), real in zip(PLACES, before, strict=True):
            setattr(owner, name, real)


def _watched(label: str, real: Callable, found: Parts, inside: list) -> Callable:
    def call(*given: object, **options: object) -> object:
        if inside:
            return real(*given, **options)
        inside.append(label)
        clock = Clock()
        try:
            return real(*given, **options)
        finally:
            clock.tick()
            inside.pop()
            found[label, *(tuple(each.shape) for each in given[:2] if torch.is_tensor(each))].append(clock)

    return call


def row(name: str, key: tuple, clocks: list[Clock]) -> dict:
    """The part's time in a step; of products also the rate, and that at which their matrices are read."""
    label, *sizes = key
    seconds = sum(clock.seconds()[0] for clock in clocks) / STEPS
    found = {"case": f"parts-{name}", "part": label, "sizes": sizes, "calls": len(clocks) // STEPS, "ms": round(1000 * seconds, 2)}
    if label.endswith((".product", ".outer", "gated.backward")):
        (one, other), calls = map(prod, sizes), found["calls"] / seconds
        found["tflops"] = round(2 * one * sizes[1][1] * calls / 1e12)
        found["tbps"] = round(2 * (one + other) * calls / 1e12, 2)
    return found


def step_of(name: str, shape: str | None) -> Callable[[], object]:
    """A step of the case without DeepSpeed, with what is kept as the bench keeps it."""
    case = case_of(name, shape)
    model, fast = Models().of(case)
    batch = placed(lay(rows(case, 0)), model.device)
    del batch["labels"]
    step = Plain(model, case)
    keep(case, model, fast, learned("adamw", None, "none"))
    return lambda: step([batch], len(batch["targets"]))


def main(name: str, shape: str | None, out: Path) -> None:
    """Print the parts, from the longest."""
    rates, step, found = limits(), step_of(name, shape), defaultdict(list)
    for _ in range(3 * WARM):
        step()
    clock = Clock()
    with timed(found):
        for _ in range(STEPS):
            step()
            clock.tick()
    made = sorted((row(name, key, clocks) for key, clocks in found.items()), key=lambda each: -each["ms"])
    made.insert(0, {"case": f"parts-{name}", "part": "step", "ms": round(1000 * sum(clock.seconds()) / STEPS, 2)})
    for each in made:
        tell(each, out, rates)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default="A")
    parser.add_argument("--shape", choices=list(SHAPES))
    parser.add_argument("--out", type=Path, default=Path("parts.json"))
    given = parser.parse_args()
    main(given.case, given.shape, given.out)
