"""What a training came to: what is compared with a lock, what is kept, and what a user should look at."""

from __future__ import annotations

import math
from collections.abc import Sequence

from transformers import Trainer

from tunestation.pipeline.job import Result
from tunestation.settings import world_size
from tunestation.training.callbacks import Samples, Watch, memory_gb
from tunestation.training.order import Order

LAST = 10
"""Steps at the end of which `loss` is the mean."""
FIRST = 3
"""Steps at the beginning with which it is compared."""
RISE = 1.25
"""Times the loss of the beginning: one batch may be that much harder than another, a training that learns ends below."""


def result(trainer: Trainer, watch: Watch, samples: Samples, order: Order) -> Result:
    """Facts, metrics and observations of a training that has ended."""
    losses, held_out = _history(trainer, "loss"), _history(trainer, "eval_loss")
    values = list(losses.values())
    warned = warnings(values)
    for text in warned:
        print(f"  warning: {text}", flush=True)
    metrics = {"loss": round(_mean(values[-LAST:]), 6)}
    return Result(
        facts={"steps": order.steps, "trained_tokens": sum(watch.tokens), "visits_left_out": order.left_out},
        metrics=metrics | ({"held_out_loss": held_out[order.steps]} if held_out else {}),
        observed={
            "losses": losses,
            "held_out_losses": held_out,
            "samples": samples.taken(),
            "tokens_per_second": round(watch.speed(order.steps), 1),
            "peak_memory_gb": round(memory_gb(), 3),
            "world_size": world_size(),
            "warnings": warned,
        },
    )


def warnings(losses: Sequence[float]) -> list[str]:
    """Of the losses of all steps: a sentence where the last ones are no numbers, or well above the first."""
    begin, end = _mean(losses[:FIRST]), _mean(losses[-LAST:])
    if not math.isfinite(end):
        return ["the loss is no number any more: nothing useful was learned; try a lower train.learning_rate"]
    if len(losses) >= FIRST + LAST and end > RISE * begin:
        return [f"the loss rose from {begin:.4g} to {end:.4g}: nothing useful was learned; try a lower train.learning_rate"]
    return []


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _history(trainer: Trainer, name: str) -> dict[int, float]:
    """Step -> value of a logged number, resumed steps included."""
    return {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}
