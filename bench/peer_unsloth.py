"""Unsloth by its documented calls: a base loaded from a folder, adapters by its `get_peft_model`, checkpointing of its kind or none."""

from __future__ import annotations

import tempfile

import torch
from cases import Case, Setting
from models import build
from peer_transformers import measure as measured
from peer_transformers import settings as settings_of_transformers
from peer_trl import tokenizer

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def settings(case: Case) -> list[Setting]:
    """Its defaults (checkpointing of its own kind), packs where documents are short, and without recomputing."""
    if case.documents:
        return [Setting(8, True, default=True), Setting(8, True, packs=True), Setting(8, False, packs=True)]
    return settings_of_transformers(case)


def model(case: Case) -> torch.nn.Module:
    """The case's weights and adapters under Unsloth."""
    from unsloth import FastLanguageModel

    stock = build(case.shape, "bf16", case.rank, case.dropout)
    adapters = {name: weight.data.cpu() for name, weight in stock.named_parameters() if weight.requires_grad}
    with tempfile.TemporaryDirectory() as folder:
        stock.unload().save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        del stock
        loaded, _ = FastLanguageModel.from_pretrained(
            model_name=folder, max_seq_length=case.length, dtype=torch.bfloat16, load_in_4bit=case.base == "nf4"
        )
    made = FastLanguageModel.get_peft_model(
        loaded,
        r=case.rank,
        target_modules=MODULES,
        lora_alpha=16,
        lora_dropout=case.dropout,
        bias="none",
        use_gradient_checkpointing="unsloth",
        random_state=0,
    )
    for name, weight in made.named_parameters():
        if weight.requires_grad:
            weight.data.copy_(adapters[name])
    return made.train()


def measure(case: Case, setting: Setting, made: torch.nn.Module, steps: int, warm: int) -> dict:
    """What was measured; its own checkpointing stays as `get_peft_model` switched it on, unless the setting has none."""
    return measured(case, setting, made, steps, warm, switch=not setting.checkpointing)
