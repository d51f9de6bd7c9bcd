"""What is measured: cases of a training step, their random tokens, and how these are laid into micro-batches."""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, replace

import source  # noqa: F401  so that tunestation is found
import torch
from models import VOCABULARY

from tunestation.training.batches import Collate
from tunestation.training.loss import IGNORE


@dataclass
class Case:
    """What is measured. `gib` caps what the planner may use; None is all of the GPU."""

    name: str
    base: str = "nf4"
    shape: str = "internlm2-7b"
    sequences: int = 8
    length: int = 2048
    gib: float | None = None
    capped: bool = False
    """No stack may reserve more than `gib`, as on a card of that size."""
    rank: int = 64
    dropout: float = 0.0
    deepspeed: bool = False
    offload: bool = False
    """Under DeepSpeed, in place of a paged optimizer: master weights and Adam's states in host memory, as runtime.offload has it."""
    loose: bool = False
    """Under DeepSpeed: gradients stay where the backward pass made them until all are there."""
    optimizer: str = "adamw"
    documents: bool = False
    in_order: bool = False
    """Attention's gradients are summed in one order."""
    more: int = 1
    """Times as many steps, before and among those that are measured: where they are short, ways of products take turns for longer."""

    @property
    def told(self) -> str:
        """The case in words."""
        tokens = f"{self.sequences * self.length:,} tokens in documents of 60 to 600"
        rows = tokens if self.documents else f"{self.sequences} x {self.length:,} tokens"
        words = [f"{self.shape}, {self.base} base, rank {self.rank}", rows]
        words += [f"dropout {self.dropout:g}"] * (self.dropout > 0) + [f"at most {self.gib} GiB"] * (self.gib is not None)
        words += ["Adam's states paged"] * (self.optimizer == "paged") + ["sums in one order"] * self.in_order
        words += ["under ZeRO-2"] * self.deepspeed
        return ", ".join(words)


CASES = {
    case.name: case
    for case in (
        Case("A"),
        Case("A4", sequences=4),
        Case("B", sequences=4, gib=10.2, optimizer="paged"),
        Case("C", sequences=1, gib=6.6, optimizer="paged"),
        Case("C16", sequences=1, gib=6.6, rank=16, optimizer="paged"),
        # the smallest; D-stream leaves the planner less than the weights alone take
        Case("D", sequences=1, gib=5.5, optimizer="paged"),
        Case("D16", sequences=1, gib=4.75, rank=16, optimizer="paged"),
        Case("D-stream", sequences=1, gib=2.5, optimizer="paged"),
        Case("D-host", sequences=1, gib=5.5, optimizer="paged", offload=True),
        Case("E", base="fp8"),
        Case("F", documents=True),
        Case("FE", base="fp8", documents=True),
        Case("G", shape="internlm2-1.8b", more=3),
        Case("G-order", shape="internlm2-1.8b", more=3, in_order=True),
        Case("GE", shape="internlm2-1.8b", base="fp8", more=3),
        Case("H", dropout=0.1),
        Case("24", sequences=4, gib=23.0, capped=True),
        Case("bf16", base="bf16"),
        Case("A-order", in_order=True),
        Case("F-order", documents=True, in_order=True),
    )
}
TABLE = ("A", "B", "C", "D", "D16", "D-stream", "E", "F", "G", "H", "24")
"""The cases that are published."""
TINY = 64
"""Tokens of a sequence in the tiny shape."""


def case_of(name: str, shape: str | None = None) -> Case:
    """A case by its name; NAME+zero is under DeepSpeed, NAME+loose with `loose` gradients there; all in `shape` if it is given."""
    plain, _, how = name.partition("+")
    case = CASES[plain]
    offload = case.offload and bool(how)
    case = replace(case, deepspeed=bool(how), loose=how == "loose", offload=offload, optimizer="adamw" if offload else case.optimizer)
    return replace(case, shape=shape, length=TINY if shape == "tiny" else case.length) if shape else case

HOWS = ("zero", "loose")
"""What may follow a case's name and a plus: under DeepSpeed, and there with `loose` gradients."""


def named(text: str, hows: tuple[str, ...] = HOWS) -> list[str]:
    """The cases that `text` names, as `A,C+zero`; `all` are the published ones. Raises ArgumentTypeError that names those there are."""
    if text == "all":
        return [each for name in TABLE for each in ((name, f"{name}+zero") if hows else (name,))]
    asked = [name.strip() for name in text.split(",")]
    wrong = [name for name in asked if name.partition("+")[0] not in CASES or ("+" in name and name.partition("+")[2] not in hows)]
    if wrong:
        behind = f", each also with +{' or +'.join(hows)} behind it" if hows else ""
        raise argparse.ArgumentTypeError(f"there is no case '{', '.join(wrong)}'. Choose from: {', '.join(CASES)}{behind}; or all.")
    return asked


def rows(case: Case, index: int) -> list[dict]:
    """Random tokens: `sequences` of `length`, or as many tokens in documents of 60 to 600, their second half labelled."""
    draw, generator = random.Random(index), torch.Generator().manual_seed(index)
    vocabulary, longest = (VOCABULARY, 600) if case.shape != "tiny" else (512, TINY)
    lengths = drawn(draw, case.length * case.sequences, longest) if case.documents else [case.length] * case.sequences
    found = []
    for length in lengths:
        ids = torch.randint(vocabulary, (length,), generator=generator).tolist()
        prompt = length // 2 if case.documents else 0
        found.append({"input_ids": ids, "labels": [IGNORE] * prompt + ids[prompt:], "position_ids": list(range(length))})
    return found


def drawn(draw: random.Random, tokens: int, longest: int) -> list[int]:
    """Lengths of documents of a tenth of `longest` to all of it, and of the rest of `tokens`."""
    found, left = [], tokens
    while left > longest:
        found.append(draw.randint(longest // 10, longest))
        left -= found[-1]
    return [*found, left]


@dataclass(frozen=True)
class Setting:
    """How another stack is run: `rows` go through the GPU at once, as many such micro-batches as a step's tokens ask for."""

    rows: int
    checkpointing: bool
    packs: bool = False
    """Documents lie in packs; else each is a row, padded to the longest of its micro-batch."""
    compiled: bool = False
    default: bool = False
    """The stack's own defaults, but for the batch."""

    def told(self, case: Case) -> str:
        """The setting in words."""
        laid = ("packs of " if self.packs else "padded rows of up to ") if case.documents else ""
        words = [f"{self.rows} x {laid}{600 if case.documents and not self.packs else case.length} tokens at once"]
        words += [f"checkpointing {'on' if self.checkpointing else 'off'}"]
        return ", ".join([*words, *["compiled"] * self.compiled, *["its default"] * self.default])


def micro_batches(case: Case, setting: Setting, index: int) -> list[list[dict]]:
    """The rows of step `index`, as `setting` lays them."""
    laid = packed(rows(case, index), case.length) if setting.packs else rows(case, index)
    return [laid[start : start + setting.rows] for start in range(0, len(laid), setting.rows)]


def packed(documents: list[dict], size: int) -> list[dict]:
    """Documents one behind the other in rows of at most `size` tokens."""
    packs: list[dict] = []
    for document in documents:
        if not packs or len(packs[-1]["input_ids"]) + len(document["input_ids"]) > size:
            packs.append({name: [] for name in document})
        for name, values in document.items():
            packs[-1][name] = packs[-1][name] + values
    return packs


def tensors(laid: list[dict], packs: bool) -> dict[str, torch.Tensor]:
    """A micro-batch for transformers: packs tell documents by their positions, other rows their padding by a mask."""
    batch = Collate(0)(laid)
    if not packs:
        lengths = torch.tensor([len(row["input_ids"]) for row in laid])
        del batch["position_ids"]
        if len(set(lengths.tolist())) > 1:
            batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
    return batch


def counted(case: Case, index: int) -> tuple[int, int]:
    """Tokens of step `index`, and those that are learned."""
    found = rows(case, index)
    return sum(len(row["input_ids"]) for row in found), sum(label != IGNORE for row in found for label in row["labels"][1:])
