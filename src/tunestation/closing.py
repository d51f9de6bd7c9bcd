"""What a run says at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunestation.pipeline.lock import Comparison
from tunestation.pipeline.run import Done
from tunestation.report import duration, table
from tunestation.work import Work

OUTCOMES = {
    "skipped": "skipped",
    "new": "done",
    "byte-equal": "done again, byte-equal to the result before",
    "lent": "done together; node 0 has the result",
    "other bytes": "done again, other bytes than the result before",
}


def stages(done: Sequence[Done]) -> str:
    """A table of what became of each stage."""
    rows = [(item.step.stage.name, OUTCOMES[item.outcome], duration(item.seconds), str(item.folder)) for item in done]
    total = duration(sum(item.seconds for item in done))
    return "\n" + table([*rows, ("all", "", total, "")], ("stage", "outcome", "time", "result"))


def warnings(work: Work) -> str:
    """A table of all that the stages warned of; empty if there was nothing."""
    rows = [(stage, text) for stage, record in work.records().items() for text in record["observed"].get("warnings", [])]
    return f"\n{table(rows, ('stage', 'warning'))}\n" if rows else ""


def comparisons(found: Sequence[Comparison], lock: Path) -> str:
    """A table of each stage beside the lock, with its verdict."""
    if not found:
        return f"\nNothing to compare with {lock}."
    return "\n" + table([(item.stage, item.verdict, item.reason) for item in found], (f"against {lock.name}", "verdict", "because"))


def results(work: Work) -> str:
    """Metrics of all stages, sample answers before and after, and where the model is."""
    records = work.records()
    metrics = [(name, _figure(value)) for record in records.values() for name, value in record["metrics"].items()]
    lines = ["", table(metrics, ("measured", "value"))] if metrics else []
    if "train" in records:
        lines += ["", *_step(records["train"]["observed"])]
        lines += _samples(work.recipe.evaluate.prompts, records["train"]["observed"]["samples"])
    if "merge" in records:
        lines += ["", f"The model: {work.folder('merge')}", f"Chat with it: {work.command('chat')}    or: {work.command('ask')} \"...\""]
    return "\n".join(lines)


def _figure(value: float) -> str:
    """Four places, or the two leading digits of what those would hide."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.0001 else f"{value:.1e}"


def _step(observed: dict) -> list[str]:
    """The step that was taken, and what it needed beside its plan."""
    if "step" not in observed:
        return ["Nothing was trained: train.epochs is 0."]
    lines, plan = [f"Trained by {observed['step']}."], observed.get("planned")
    if plan:
        memory = f"{observed['peak_memory_gb']:.2f} GB of memory (planned: {plan['peak_memory_gb']:.2f})"
        lines.append(f"It took {memory} at {observed['tokens_per_second']:,.0f} tokens a second (planned: {plan['tokens_per_second']:,}).")
    return lines


def _samples(prompts: Sequence[str], taken: dict[str, list[str]]) -> list[str]:
    if not prompts or not taken:
        return []
    first, *_, last = taken[min(taken, key=int)], taken[max(taken, key=int)]
    rows = [(prompt, _one_line(before), _one_line(after)) for prompt, before, after in zip(prompts, first, last, strict=True)]
    return ["", table(rows, ("asked", "before", "after"))]


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 60 else f"{flat[:57]}..."
