"""`invoke plan`: memory, time and money of a recipe's training on a card, before anything is rented. Arithmetic alone, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from tunestation.catalog import models
from tunestation.errors import InputError
from tunestation.fetching.manifest import model_of
from tunestation.pipeline.files import read_json
from tunestation.pipeline.volumes import PACKAGE
from tunestation.report import duration, table
from tunestation.training import cards, memory, pace
from tunestation.training.learned import learned
from tunestation.training.memory import GIB
from tunestation.training.order import draw
from tunestation.training.zero import accumulation_steps
from tunestation.work import Work

FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""What config.json calls the count of a layer's experts, by family."""
CHECKPOINT_BYTES = 14
"""Of an adapter weight in a checkpoint: itself, and its master copy and Adam's two states in fp32."""


@dataclass(frozen=True)
class Plan:
    """What training would do on `gpus` cards of one kind."""

    card: cards.Card
    gpus: int
    parts: dict[str, int]
    """Bytes of memory, by what takes them."""
    host: dict[str, int]
    """Bytes of host memory, by what takes them."""
    choice: memory.Choice
    tokens: int
    """Of one optimizer step, if all packs are full."""
    step_seconds: float

    @property
    def needed(self) -> float:
        """GiB at the worst moment."""
        return sum(self.parts.values()) / GIB

    @property
    def fits(self) -> bool:
        """Whether the card's memory suffices."""
        return self.needed <= self.card.memory * (1 - memory.SPARE / 2)


def shape_of(work: Work) -> memory.Shape:
    """The shape of the recipe's model: from its fetched config.json, or the catalogue. Raises InputError where neither tells it."""
    rank, source = work.recipe.train.lora.rank, work.recipe.model.source
    folder = work.folder("fetch")
    if folder and (model := model_of(folder)):
        return memory.Shape.of(_told(read_json(work.shelf.volumes.path(model.ref) / "config.json")), rank)
    if source.kind == "starter":
        return memory.Shape.of(_told(read_json(PACKAGE / "starter" / "model" / "config.json")), rank)
    if source.kind == "hub":
        known = models.find(source.repo)
        if known and not known.shape.experts:
            config = known.shape.model_dump(exclude_none=True)
            if not _missing(config):
                return memory.Shape.of(config, rank)
    what = "the model's shape is not known before it is fetched."
    raise InputError(what, str(work.path), f"Run 'invoke fetch {work.recipe.name}' first.")


def _told(config: dict) -> dict:
    if any(config.get(name) for name in EXPERTS):
        raise InputError("no plans are made for mixtures of experts: not all of their weights work on a token.")
    if missing := _missing(config):
        raise InputError(f"plans are made for models like Llama; config.json has no {', '.join(missing)}.")
    return config


def _missing(config: dict) -> list[str]:
    return [name for name in FIELDS if name not in config]


def plans(work: Work, names: list[str], gpus: int) -> list[Plan]:
    """One for each card, the smallest that suffices first. Raises InputError for full training, and for a batch that cannot be shared."""
    if work.recipe.train.method == "full":
        raise InputError("plans are made for adapters (qlora, lora), and train.method is 'full'.", str(work.path))
    if not work.recipe.train.epochs:
        raise InputError("nothing is trained: train.epochs is 0.", str(work.path))
    if gpus < 1:
        raise InputError(f"{gpus} is no count of GPUs.", "--gpus", "Give 1 or more.")
    found = [plan for name in names or cards.CARDS if (plan := _plan(work, cards.CARDS[name], gpus))]
    if not found:
        raise InputError(f"{names[0]} has no products of 8-bit floats.", "--gpu", "Set train.base.type to nf4, or name another card.")
    return found if names else sorted(found, key=lambda plan: (not plan.fits, plan.card.memory, -plan.card.rate))


def _plan(work: Work, card: cards.Card, gpus: int) -> Plan | None:
    recipe, shape = work.recipe, shape_of(work)
    train, runtime = recipe.train, recipe.runtime
    base = train.base.type if train.method == "qlora" else "bf16"
    if base == "fp8" and not card.rate_8:
        return None
    tokens = train.max_tokens * runtime.micro_batch_size
    micro_batches = accumulation_steps(train.global_batch_size, runtime.micro_batch_size, gpus)
    gradients = learned(train.optimizer, runtime.zero_stage, runtime.offload != "none", gpus, micro_batches > 1)
    resident = memory.base_bytes(shape, base, train.base.double_quant) + memory.HALF * shape.embedding + memory.WORKSPACE
    resident += round(gradients.resident * shape.adapters)
    wanted = None if runtime.gradient_checkpointing == "auto" else runtime.gradient_checkpointing
    free = int(card.memory * (1 - memory.SPARE) * GIB) - resident
    choice = memory.choose(shape, tokens, free, wanted, base, gradients, train.base.double_quant)
    seconds = pace.micro_batch(shape, card, choice, tokens, tokens, _span(work), base, train.lora.dropout > 0)
    parts = memory.components(shape, choice, tokens, base, gradients, train.base.double_quant)
    step_tokens = train.max_tokens * train.global_batch_size
    host = memory.host_bytes(shape, choice, tokens, base, train.base.double_quant)
    host |= {"optimizer": round(gradients.host * shape.adapters)} if gradients.host else {}
    return Plan(card, gpus, parts, host, choice, step_tokens, micro_batches * seconds + pace.optimizer_step(shape, card))


def facts_of(work: Work) -> dict | None:
    """What `prepare` counted; None before it has run."""
    return work.records().get("prepare", {}).get("facts")


def _span(work: Work) -> float:
    """Mean tokens of a document."""
    facts = facts_of(work)
    return facts["tokens"] / facts["conversations"] if facts else work.recipe.train.max_tokens


def steps_of(work: Work) -> int | None:
    """Optimizer steps of the whole training; None before `prepare` has counted the packs."""
    facts, train = facts_of(work), work.recipe.train
    return draw(facts["packs"], train.epochs, train.global_batch_size, train.seed).steps if facts else None


def told(work: Work, names: list[str], gpus: int, price: float | None) -> str:
    """The plans as a table; with one card, its memory by component too."""
    made, shape = plans(work, names, gpus), shape_of(work)
    steps = steps_of(work)
    lines = [table([_row(plan, steps, price) for plan in made], ("card", "memory", "fits", "tokens/s", "time", "cost", "kept in memory"))]
    if len(made) == 1:
        parts = [(name, f"{size / GIB:.2f} GiB") for name, size in made[0].parts.items()]
        lines.append(table([*parts, ("all", f"{made[0].needed:.2f} GiB of {made[0].card.memory:g}")], ("memory", "")))
        host = [(name, f"{size / GIB:.2f} GiB") for name, size in made[0].host.items()]
        lines += [table(host, ("host memory", ""))] if host else []
    counted = f"{steps:,} steps" if steps else f"The time is that of one step: 'invoke prepare {work.recipe.name}' counts them"
    weights = (shape.linear + shape.embedding) * memory.HALF / 1e9
    disk = CHECKPOINT_BYTES * shape.adapters * (work.recipe.train.keep + 2) / 1e9
    lines.append(f"{counted}; the model is {weights:.1f} GB to download, and as much again merged; checkpoints take up to {disk:.1f} GB.")
    return "\n\n".join(lines)


def _row(plan: Plan, steps: int | None, price: float | None) -> tuple[str, ...]:
    hours = plan.step_seconds * (steps or 1) / 3600
    return (
        f"{plan.gpus} x {plan.card.name}",
        f"{plan.needed:.1f} of {plan.card.memory:g} GiB",
        "yes" if plan.fits else "no",
        f"{plan.tokens / plan.step_seconds:,.0f}",
        duration(hours * 3600),
        "" if price is None or not steps else f"{hours * plan.gpus * price:.2f}",
        plan.choice.told,
    )
