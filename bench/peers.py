"""The same training step by the other stacks that are installed: transformers with peft, and the same with Liger's kernels.

`python bench/peers.py --cases A,F --out FILE`. Each runs in its default and in its best settings known, on the same weights, ids and
optimizer; tokens are counted without padding. Rows go to the same file as those of bench/step.py.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from cases import CASES, Case, rows
from models import build
from reading import CUDA, save
from step import Plain, shown, timed

from tunestation.training.batches import Collate


@dataclass
class Setting:
    """How a peer is run."""

    stack: str
    case: str
    sequences: int
    checkpointing: bool
    note: str


def settings(stack: str, case: str) -> list[Setting]:
    """Default settings (checkpointing on), and the best found: as large a batch as fits without it."""
    if case == "F":
        return [Setting(stack, case, 8, False, "packs of 2,048 with a block mask"), Setting(stack, case, 8, False, "padded rows")]
    if case == "C":
        return [Setting(stack, case, 1, True, "checkpointing on")]
    return [Setting(stack, case, 8, True, "checkpointing on"), Setting(stack, case, 4, False, "checkpointing off")]


class Peer:
    """A peft model called as transformers' Trainer with bf16=True calls it; `loss` is the mean over labelled tokens."""

    def __init__(self, model: torch.nn.Module, checkpointing: bool):
        self.model = model
        inner = model.get_base_model()
        if checkpointing:
            inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            inner.gradient_checkpointing_disable()

    def parameters(self):
        return self.model.parameters()

    def __call__(self, **batch: torch.Tensor):
        with torch.autocast("cuda" if CUDA else "cpu", torch.bfloat16):
            return self.model(**batch, use_cache=False)


def batches(case: Case, note: str, device: torch.device) -> list[dict]:
    """Three micro-batches: rows of one length, packs of `case.length`, or padded documents in the same number of tokens."""
    found = []
    for index in range(3):
        documents = rows(case, index)
        if note.startswith("packs"):
            documents = packed(documents, case.length)
        batch = Collate(0)(documents)
        if note.startswith("padded"):
            longest = batch["input_ids"].shape[1]
            lengths = torch.tensor([len(row["input_ids"]) for row in documents])
            batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
        found.append({name: value.to(device) for name, value in batch.items()})
    return found


def packed(documents: list[dict], size: int) -> list[dict]:
    """Documents one behind the other in rows of at most `size` tokens."""
    packs: list[dict] = []
    for document in documents:
        if not packs or len(packs[-1]["input_ids"]) + len(document["input_ids"]) > size:
            packs.append({name: [] for name in document})
        for name, values in document.items():
            packs[-1][name] = packs[-1][name] + values
    return packs


def run(cases: list[str], steps: int, warm: int, shape: str | None, out: Path) -> None:
    """Measure every installed stack; one that fails says so in its row."""
    stacks = ["transformers + peft", *(["transformers + peft + liger"] if importlib.util.find_spec("liger_kernel") else [])]
    found, model = [], None
    for stack in stacks:
        for name in cases:
            case = replace(CASES[name], shape=shape or CASES[name].shape, length=64 if shape == "tiny" else CASES[name].length)
            model = None
            gc.collect()
            model = build(case.shape, case.base, case.rank, case.dropout).train()
            if stack.endswith("liger"):
                from liger_kernel.transformers import apply_liger_kernel_to_llama

                apply_liger_kernel_to_llama(model=model.get_base_model())
            for setting in settings(stack, name):
                found.append(one(model, replace(case, sequences=setting.sequences, optimizer="paged"), setting, steps, warm))
                gc.collect()
                if CUDA:
                    torch.cuda.empty_cache()
                save(found[-1:], out)
    print(shown(found))


def one(model: torch.nn.Module, case: Case, setting: Setting, steps: int, warm: int) -> dict:
    """The row of one stack in one setting."""
    start = {"case": setting.case, "stack": setting.stack, "note": f"{setting.note}, {setting.sequences} x {case.length} tokens"}
    try:
        peer = Peer(model, setting.checkpointing)
        made = batches(case, setting.note, next(model.parameters()).device)
        real = [sum(len(row["input_ids"]) for row in rows(case, index)) for index in range(3)]
        return start | timed(Plain(peer, case, lambda outputs, _: outputs.loss), made, [1] * 3, sum(real) / 3, steps, warm)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        return start | {"failed": str(error).splitlines()[0][:200]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default="A,C,F")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--shape")
    parser.add_argument("--out", type=Path, default=Path("step.json"))
    given = parser.parse_args()
    sys.exit(run(given.cases.split(","), given.steps, given.warm, given.shape, given.out))
