"""Tokens a second and memory of a training step: `python bench/step.py --cases A,B,C --out FILE`.

Models have known shapes and random weights; the step is the one that a recipe trains with, with and without DeepSpeed. Rules: the same
weights and token ids for every stack, tokens without padding, median of the steps after warming up, `max_memory_allocated`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch
from cases import Case, case_of, named, rows
from measuring import CUDA, GIB, Clock, Parser, capped, clean, failure, figures, issued, limits, save
from models import SHAPES, build, configuration

from tunestation.training import memory, zero
from tunestation.training.batches import lay, placed
from tunestation.training.clipping import without_waiting
from tunestation.training.fast.model import Fast
from tunestation.training.learned import Learned, learned
from tunestation.training.pace import ceiling

WARM = 8
"""Steps before those that are measured: in the first ones products try their ways in turn."""


class Plain:
    """A step without DeepSpeed: adapters in fp32, torch's fused AdamW or bitsandbytes' paged one."""

    def __init__(self, model: Callable, case: Case, loss: Callable = lambda outputs, items: outputs.loss / items):
        self.model, self.loss = model, loss
        self.optimizer = optimizer(model, case)

    def close(self) -> None:
        """Nothing is left behind."""

    def __call__(self, batches: list[dict], items: int) -> torch.Tensor:
        total = 0.0
        for batch in batches:
            loss = self.loss(self.model(**batch), items)
            loss.backward()
            total = total + loss.detach()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total


class Zero2:
    """A step under DeepSpeed ZeRO-2, configured as a recipe's."""

    def __init__(self, model: torch.nn.Module, case: Case):
        import deepspeed

        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
        config = zero.make(2, "optimizer" if case.offload else "none", 1, 1, 1.0)
        config["zero_optimization"]["contiguous_gradients"] = not case.loose
        zero.set_buckets(config, sum(weight.numel() for weight in model.parameters() if weight.requires_grad))
        self.engine = deepspeed.initialize(model=model, optimizer=optimizer(model, case), config=config)[0]
        without_waiting(self.engine.optimizer)  # as the stage train has it

    def close(self) -> None:
        """DeepSpeed's hooks would keep the model alive."""
        self.engine.destroy()

    def __call__(self, batches: list[dict], items: int) -> torch.Tensor:
        (batch,) = batches
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


def timed(step: Callable, batches: list[list[dict]], items: list[int], tokens: float, steps: int, warm: int) -> dict:
    """What was measured; `batches` are the micro-batches of three steps, `tokens` in a step on average."""
    losses = [step(batches[index % 3], items[index % 3]) for index in range(warm)]
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    clock = Clock()
    for index in range(warm, warm + steps):
        losses.append(step(batches[index % 3], items[index % 3]))
        clock.tick()
    found = figures(clock.seconds(), [tokens] * steps, [loss.item() for loss in losses[:3]])
    return found | {"host_ms": round(1000 * issued(lambda: step(batches[0], items[0])))}


def measure(case: Case, model: torch.nn.Module, fast: Fast, steps: int, warm: int, profile: bool) -> dict:
    """The row of one case."""
    device = next(model.parameters()).device
    batches = [lay(rows(case, index)) for index in range(3)]
    batches = [placed(batch, device) for batch in batches]
    items = [len(batch["targets"]) for batch in batches]
    tokens = sum(batch.pop("labels").numel() for batch in batches) / 3
    kind = "paged_adamw_32bit" if case.optimizer == "paged" else "adamw"
    gradients = learned(kind, 2 if case.deepspeed else None, "optimizer" if case.offload else "none")
    with closing((Zero2 if case.deepspeed else Plain)(model, case)) as step:
        choice = keep(case, model, fast, gradients)
        found = {"kept": choice.told} | timed(step, [[batch] for batch in batches], items, tokens, steps, warm)
        if profile:
            show_profile(lambda: step(batches[:1], items[0]))
    waiting = sum(memory.host_bytes(fast.shape, choice, case.length * case.sequences, case.base).values())
    found["host_gib"] = round((waiting + gradients.host * fast.shape.adapters) / GIB, 2)
    return found | {name: value for name, value in asdict(case).items() if name != "name"}


def keep(case: Case, model: torch.nn.Module, fast: Fast, gradients: Learned) -> memory.Choice:
    """Let layers keep what memory allows, as the rehearsal does."""
    fast.look_up()  # before memory is counted
    choice = memory.choose(fast.shape, case.length * case.sequences, free(case, model, gradients), None, case.base, gradients)
    fast.keep(choice)
    return choice


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


def share(found: dict, case: Case, rates: dict) -> dict:
    """`found` with the share of the tokens a second that the matrix rate would allow, all tokens labelled."""
    if "matrix_tflops" not in rates or case.documents:
        return found
    shape = memory.Shape.of(configuration(case.shape).to_dict(), case.rank)
    most = ceiling(shape, case.length, rates["matrix_tflops"] * 1e12)
    return found | {"share_of_limit": round(found["tokens_per_second"] / most, 3)}


def shown(found: list[dict]) -> str:
    """Rows for people."""
    return "\n".join(_line(row) for row in found)


def _line(row: dict) -> str:
    start = f"{row['case']:8} {row['stack'] + ' + ZeRO-2' * bool(row.get('deepspeed')):28}"
    if "tokens_per_second" not in row:
        why = f"absent: {row['absent']}" if "absent" in row else f"failed: {row['failed']}"
        return f"{start} {why}{'; ' * ('note' in row)}{row.get('note', '')}"
    limit = f"{row['share_of_limit']:.0%} of the limit" if "share_of_limit" in row else ""
    said = row.get("kept") or row.get("note")
    memory = f"{row['peak_gib']:>7} GiB" if row.get("peak_gib") else " " * 11
    return f"{start} {row['tokens_per_second']:>8,} tok/s {memory}  {limit}  {said}"


class Models:
    """The last model that was built, for cases that need the same."""

    def __init__(self) -> None:
        self.model, self.fast, self.built = None, None, None

    def of(self, case: Case) -> tuple[torch.nn.Module, Fast]:
        """The model of a case with nothing held ready."""
        wanted = (case.base, case.shape, case.rank, case.dropout, case.in_order)
        if wanted != self.built or case.deepspeed:
            self.model = self.fast = self.built = None
            clean()
            self.model = build(case.shape, case.base, case.rank, case.dropout).train()
            self.fast = Fast.over(self.model, in_order=case.in_order)
            if CUDA:
                self.fast.join()  # as the stage train does
            self.built = None if case.deepspeed else wanted  # an engine leaves its hooks in a model
        self.fast.forget()
        clean()
        return self.model, self.fast


def measure_of(case: Case, models: Models, steps: int, warm: int, profile: bool) -> dict:
    """The row of one case. Nothing here outlives it: the next case's model finds the memory free."""
    model, fast = models.of(case)
    with capped(case.gib if case.capped else None):
        return measure(case, model, fast, steps * case.more, warm * case.more, profile)


def run(names: list[str], steps: int, warm: int, profiled: list[str], shape: str | None, out: Path) -> int:
    """Measure the cases one after the other; one that fails says so in its row, and the next one runs. Returns how many were measured."""
    rates, models, measured = limits(), Models(), 0
    print(", ".join(f"{name} {value}" for name, value in rates.items()) or "Rates of this machine: only a GPU's are measured.", flush=True)
    print("\n".join(f"{name:9} {case_of(name, shape).told}" for name in names), flush=True)
    for name in names:
        case = case_of(name, shape)
        start = {"case": case.name, "stack": "tunestation", "deepspeed": case.deepspeed}
        try:
            row = start | share(measure_of(case, models, steps, warm, name in profiled), case, rates)
            measured += 1
        except Exception as error:  # whatever it is, the other cases' rows are wanted
            row, models = start | {"failed": failure(error)}, Models()
        print(shown([row]), flush=True)
        save([row], out, rates)
    return measured


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    cases = "NAME, NAME+zero (under DeepSpeed), NAME+loose; all: those published, both ways"
    parser.add_argument("--cases", type=named, default="D,C,B,A,E", help=cases)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm", type=int, default=WARM)
    parser.add_argument("--profile", type=named, default=[], help="of these cases also where a step's time goes")
    parser.add_argument("--shape", choices=list(SHAPES))
    parser.add_argument("--out", type=Path, default=Path("step.json"))
    given = parser.parse_args()
    if not run(given.cases, given.steps, given.warm, given.profile, given.shape, given.out):
        sys.exit(1)
