"""A plan of the training that is going on: of its model as it is, on the GPU that is there."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import PretrainedConfig

from tunestation.settings import world_size
from tunestation.training import advice as advices
from tunestation.training import cards, families, memory, targets
from tunestation.training.fast.block import unknown
from tunestation.training.fast.model import Fast
from tunestation.training.model import plain
from tunestation.training.setup import Estimate, Setup

LIKE = "a100-80"
"""The card whose rates stand for those of one that is not known: advice compares speeds, and does not tell them."""


def setup_of(model: torch.nn.Module, settings: dict, machine: dict, fast: bool) -> Setup | None:
    """What counts for planning the training of `model`; None for an architecture that plans know nothing of."""
    adapted = [name for name, module in plain(model).named_modules() if hasattr(module, "lora_A")]
    return _setup(plain(model).config, settings, machine, adapted or targets.EVERY, fast)


def _setup(config: PretrainedConfig, settings: dict, machine: dict, adapted: targets.Targets, fast: bool) -> Setup | None:
    fields = config.to_dict()
    if families.missing(fields) or families.mixes(fields):
        return None
    shape = memory.Shape.of(fields, settings["lora"]["rank"])
    if families.kind(fields) in families.NAMED:
        shape = targets.under(shape, adapted)
    return Setup.of(settings, machine, shape, world_size(), fast)


def waits(config: PretrainedConfig, settings: dict, machine: dict, tokens: int, free: int) -> memory.Host:
    """What will wait in host memory with micro-batches of `tokens`, as far as that can be told before a model of `config` is loaded.

    `free` are the bytes that are free on the GPU. Nothing waits under transformers' own step.
    """
    known = unknown(config, settings["max_tokens"]) is None
    setup = _setup(config, settings, machine, settings["lora"]["target_modules"], known)
    return setup.choose(tokens, free / memory.GIB).host if setup and setup.fast else memory.ALL_THERE


def _card() -> cards.Card | None:
    """This GPU with the memory that it has; None if its rates are not known."""
    gib = torch.cuda.mem_get_info()[1] / memory.GIB
    card = cards.named(torch.cuda.get_device_name(), gib)
    return card and replace(card, memory=gib)


def planned(setup: Setup | None, fast: Fast | None, rows: object) -> dict:
    """What a plan says of the choice that was made, on this card, for `rows` as they are; empty if it cannot say anything."""
    card = _card() if setup and torch.cuda.is_available() else None
    if card is None or (setup.base == "fp8" and not card.rate_8):
        return {}
    choice = fast.choice if fast else setup.stock.choice
    a_row = sum(len(ids) for ids in rows["input_ids"]) / len(rows)
    tokens, longest = round(a_row * setup.micro), max(len(ids) for ids in rows["input_ids"]) * setup.micro
    span = a_row / max(1, sum(ids.count(0) for ids in rows["position_ids"]) / len(rows))
    speed = tokens * setup.micro_batches * setup.ranks / setup.step_seconds(card, choice, tokens, span)
    parts = setup.components(choice, longest)
    return {"planned": {"peak_memory_gb": round(sum(parts.values()) / 1e9, 2), "tokens_per_second": round(speed)}}


def advice(setup: Setup | None) -> str:
    """What to change now that memory has run out."""
    if setup is None:
        return "Lower one of:\n  runtime.micro_batch_size, train.max_tokens, train.lora.rank"
    card = _card() or replace(cards.CARDS[LIKE], memory=torch.cuda.mem_get_info()[1] / memory.GIB)
    return advices.told(Estimate.of(setup, card), failed=True)
