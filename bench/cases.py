"""What is measured: cases of a training step, and their random tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from models import VOCABULARY


@dataclass
class Case:
    """What is measured. `gib` caps what the planner may use; None is all of the GPU."""

    name: str
    base: str = "nf4"
    shape: str = "internlm2-7b"
    sequences: int = 8
    length: int = 2048
    gib: float | None = None
    rank: int = 64
    dropout: float = 0.0
    deepspeed: bool = False
    offload: bool = False
    loose: bool = False
    """Under DeepSpeed: gradients stay where the backward pass made them until all are there."""
    optimizer: str = "adamw"
    documents: bool = False


CASES = {
    case.name: case
    for case in (
        Case("A"),
        Case("A4", sequences=4),
        Case("B", sequences=4, gib=10.2, optimizer="paged"),
        Case("C", sequences=1, gib=6.6, optimizer="paged"),
        Case("C16", sequences=1, gib=6.6, rank=16, optimizer="paged"),
        Case("E", base="fp8"),
        Case("F", documents=True),
        Case("FE", base="fp8", documents=True),
        Case("G", shape="internlm2-1.8b"),
        Case("GE", shape="internlm2-1.8b", base="fp8"),
        Case("H", dropout=0.1),
        Case("24", sequences=4, gib=23.0),
        Case("bf16", base="bf16"),
        # the smallest: as recipes with runtime.offload: optimizer train; D-stream leaves the planner less than the weights alone take
        Case("D", sequences=1, gib=5.5, deepspeed=True, offload=True),
        Case("D16", sequences=1, gib=4.75, rank=16, deepspeed=True, offload=True),
        Case("D-stream", sequences=1, gib=2.5, deepspeed=True, offload=True),
    )
}


def rows(case: Case, index: int) -> list[dict]:
    """Random tokens: `sequences` of `length`, or as many tokens in documents of 60 to 600, their second half labelled."""
    draw, generator = random.Random(index), torch.Generator().manual_seed(index)
    vocabulary = VOCABULARY if case.shape != "tiny" else 512
    lengths = [case.length] * case.sequences
    if case.documents:
        left, lengths = case.length * case.sequences, []
        while left > 600:
            lengths.append(draw.randint(60, 600))
            left -= lengths[-1]
        lengths.append(left)
    found = []
    for length in lengths:
        ids = torch.randint(vocabulary, (length,), generator=generator).tolist()
        prompt = length // 2 if case.documents else 0
        found.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:], "position_ids": list(range(length))})
    return found
