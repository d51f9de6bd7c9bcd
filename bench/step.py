"""Tokens a second and memory of a training step: `python bench/step.py --cases A,B,C --out FILE`.

Models have known shapes and random weights; the step is the one that a recipe trains with, with and without DeepSpeed. Rules: the same
weights and token ids for every stack, tokens without padding, median of the steps after warming up, `max_memory_allocated`.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from cases import CASES, Case, rows
from models import SHAPES, build
from reading import CUDA, Clock, limits, save

from tunestation.training import memory, zero
from tunestation.training.batches import lay
from tunestation.training.fast.model import Fast
from tunestation.training.learned import Learned, learned
from tunestation.training.pace import ceiling

GIB = 2**30


class Plain:
    """A step without DeepSpeed: adapters in fp32, torch's fused AdamW or bitsandbytes' paged one."""

    def __init__(self, model: Callable, case: Case, loss: Callable = lambda outputs, items: outputs.loss / items):
        self.model, self.loss = model, loss
        self.optimizer = optimizer(model, case)

    def __call__(self, batch: dict, items: int) -> torch.Tensor:
        loss = self.loss(self.model(**batch), items)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


class Zero2:
    """A step under DeepSpeed ZeRO-2, configured as a recipe's."""

    def __init__(self, model: torch.nn.Module, case: Case):
        import deepspeed

        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
        config = zero.make(2, "optimizer" if case.offload else "none", 1, 1, 1.0)
        config["zero_optimization"]["contiguous_gradients"] = not case.loose
        zero.set_buckets(config, sum(weight.numel() for weight in model.parameters() if weight.requires_grad))
        self.engine = deepspeed.initialize(model=model, optimizer=optimizer(model, case), config=config)[0]

    def __call__(self, batch: dict, items: int) -> torch.Tensor:
        loss = self.engine(**batch).loss / items
        self.engine.backward(loss)
        self.engine.step()
        return loss.detach()


def optimizer(model: torch.nn.Module, case: Case) -> torch.optim.Optimizer:
    """Of the adapters."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if case.optimizer == "paged" and CUDA:
        import bitsandbytes as bnb

        return bnb.optim.PagedAdamW32bit(weights, lr=1e-4)
    return torch.optim.AdamW(weights, lr=1e-4, fused=CUDA)


def timed(step: Callable, batches: list[dict], items: list[int], tokens: float, steps: int, warm: int) -> dict:
    """What was measured; `tokens` in a step on average."""
    losses = [step(dict(batches[index % 3]), items[index % 3]) for index in range(warm)]
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    clock = Clock()
    for index in range(steps):
        losses.append(step(dict(batches[index % 3]), items[index % 3]))
        clock.tick()
    seconds = clock.seconds()
    return {
        "tokens_per_second": round(tokens / statistics.median(seconds)),
        "slowest": round(tokens / max(seconds)),
        "fastest": round(tokens / min(seconds)),
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2) if CUDA else None,
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2) if CUDA else None,
        "losses": [round(loss.item(), 4) for loss in losses[:3]],
    }


def measure(case: Case, model: torch.nn.Module, fast: Fast, steps: int, warm: int, profile: bool) -> dict:
    """The row of one case."""
    device = next(model.parameters()).device
    batches = [lay(rows(case, index)) for index in range(3)]
    batches = [{name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()} for batch in batches]
    items = [len(batch["targets"]) for batch in batches]
    tokens = sum(batch.pop("labels").numel() for batch in batches) / 3
    step = (Zero2 if case.deepspeed else Plain)(model, case)
    gradients = learned("paged_adamw_32bit" if case.optimizer == "paged" else "adamw", 2 * case.deepspeed, case.offload)
    choice = memory.choose(fast.shape, case.length * case.sequences, free(case, model, gradients), None, case.base, gradients)
    fast.keep(choice)
    found = {"case": case.name, "stack": "tunestation", "kept": choice.told} | timed(step, batches, items, tokens, steps, warm)
    waiting = sum(memory.host_bytes(fast.shape, choice, case.length * case.sequences, case.base).values())
    found["host_gib"] = round((waiting + gradients.host * fast.shape.adapters) / GIB, 2)
    if profile:
        show_profile(lambda: step(batches[0], items[0]))
    return found | {name: value for name, value in asdict(case).items() if name != "name"}


def free(case: Case, model: torch.nn.Module, gradients: Learned) -> int:
    """Bytes that activations and gradients may take: of what is there, without Adam's states to come, matrix libraries and a reserve."""
    if not CUDA:
        return 2**62
    count = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    there = 2 if case.offload else 6 if case.deepspeed else 4  # bytes of a weight that is made before the first step
    total = int(case.gib * GIB) if case.gib else int(torch.cuda.mem_get_info()[1] * (1 - memory.SPARE))
    return total - torch.cuda.memory_allocated() - memory.WORKSPACE - round(gradients.resident - there) * count


def show_profile(step: Callable) -> None:
    """Where one step's time goes, by kernel and by operator."""
    kinds = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as made:
        step()
        torch.cuda.synchronize()
    for key in ("self_cuda_time_total", "self_cpu_time_total"):
        print(made.key_averages().table(sort_by=key, row_limit=30, max_name_column_width=60), flush=True)


def share(found: dict, case: Case, shape: memory.Shape, rates: dict) -> dict:
    """`found` with the share of the tokens a second that the matrix rate would allow, all tokens labelled."""
    if "matrix_tflops" not in rates or case.documents:
        return found
    most = ceiling(shape, case.length, rates["matrix_tflops"] * 1e12)
    return found | {"share_of_limit": round(found["tokens_per_second"] / most, 3)}


def shown(found: list[dict]) -> str:
    """Rows for people."""
    return "\n".join(
        f"{row['case']:8} {row['stack']:28} {row.get('tokens_per_second', 0):>8,} tok/s {row.get('peak_gib') or 0:>7} GiB  "
        f"{row.get('share_of_limit', 0):.0%} of the limit  {row.get('kept') or row.get('note') or ''} {row.get('failed', '')}"
        for row in found
    )


def run(names: list[str], steps: int, warm: int, profiled: list[str], shape: str | None, out: Path) -> None:
    """Measure the cases one after the other; `NAME+zero` is a case under DeepSpeed, `NAME+loose` one with `loose` gradients there."""
    found, model, fast, built = [], None, None, None
    rates = limits()
    print(", ".join(f"{name} {value}" for name, value in rates.items()), flush=True)
    for name in names:
        plain, _, how = name.partition("+")
        case = CASES[plain]
        case = replace(case, deepspeed=case.deepspeed or bool(how), loose=how == "loose")
        if shape:
            case = replace(case, shape=shape, length=64 if shape == "tiny" else case.length)
        wanted = (case.base, case.shape, case.rank, case.dropout)
        if wanted != built or case.deepspeed:
            model = fast = None
            gc.collect()
            model = build(case.shape, case.base, case.rank, case.dropout).train()
            built = None if case.deepspeed else wanted  # an engine leaves its hooks in a model
            fast = Fast.over(model)
        fast.forget()
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()
        try:
            row = share(measure(case, model, fast, steps, warm, name in profiled), case, fast.shape, rates)
        except torch.OutOfMemoryError:
            row = {"case": case.name, "stack": "tunestation", "failed": "does not fit"}
        found.append(row)
        print(shown(found[-1:]), flush=True)
        save(found[-1:], out, rates)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default="C,B,A,E")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--profile", default="")
    parser.add_argument("--shape", choices=list(SHAPES))
    parser.add_argument("--out", type=Path, default=Path("step.json"))
    given = parser.parse_args()
    run(given.cases.split(","), given.steps, given.warm, given.profile.split(","), given.shape, given.out)
