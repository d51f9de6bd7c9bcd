"""transformers' training step over peft's adapters, as its Trainer with bf16=True calls it."""

from __future__ import annotations

import torch
from cases import Case, Setting, counted, micro_batches, tensors
from measuring import CUDA
from models import build
from step import Plain, timed


def settings(case: Case) -> list[Setting]:
    """transformers' way with little memory, and without recomputing, from the largest batch down."""
    if case.documents:
        return [Setting(8, True, default=True), Setting(4, True, packs=True), Setting(4, False, packs=True), Setting(2, False, packs=True)]
    if case.gib:
        return [Setting(rows, True, default=rows == case.sequences) for rows in sorted({case.sequences, 1}, reverse=True)]
    return [Setting(8, True, default=True), Setting(8, False), Setting(4, False)]


class Peer:
    """A peft model under autocast."""

    def __init__(self, model: torch.nn.Module):
        self.model = model

    def parameters(self):
        return self.model.parameters()

    def __call__(self, **batch: torch.Tensor):
        with torch.autocast("cuda" if CUDA else "cpu", torch.bfloat16):
            return self.model(**batch, use_cache=False)


def model(case: Case) -> torch.nn.Module:
    """The case's model."""
    return build(case.shape, case.base, case.rank, case.dropout).train()


def measure(case: Case, setting: Setting, made: torch.nn.Module, steps: int, warm: int, switch: bool = True) -> dict:
    """What was measured; `switch`: checkpointing is set here, not already in the model."""
    device, batches, items = next(made.parameters()).device, [], []
    inner = made.get_base_model()
    if switch and setting.checkpointing:
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    elif switch:
        inner.gradient_checkpointing_disable()
    for index in range(3):
        items.append(counted(case, index)[1])
        laid = [tensors(micro, setting.packs) for micro in micro_batches(case, setting, index)]
        batches.append([{name: value.to(device) for name, value in batch.items()} | {"num_items_in_batch": items[-1]} for batch in laid])
    tokens = sum(counted(case, index)[0] for index in range(3)) / 3
    return timed(Plain(Peer(made), case, lambda outputs, _: outputs.loss), batches, items, tokens, steps, warm)
