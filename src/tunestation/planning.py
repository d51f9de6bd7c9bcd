"""`invoke plan`: memory, time and money of a recipe's training on a card, before anything is rented. Arithmetic alone, no torch."""

from __future__ import annotations

from tunestation.catalog import models
from tunestation.errors import InputError
from tunestation.export.patterns import bad_patterns
from tunestation.fetching.manifest import model_of
from tunestation.models.native.registry import FAMILIES
from tunestation.pipeline.files import read_json
from tunestation.pipeline.stage import keys
from tunestation.pipeline.volumes import PACKAGE
from tunestation.recipe.sources import NewModel
from tunestation.report import duration, filled, fitted, table
from tunestation.stages.inputs import ADAPTER
from tunestation.training import advice, cards, families, memory, targets
from tunestation.training.memory import GIB
from tunestation.training.order import steps
from tunestation.training.setup import Estimate, Setup
from tunestation.work import Work

CONVERTED = {family.name: family.target for family in FAMILIES}
"""Family -> what it becomes when it is fetched."""
CHECKPOINT_BYTES = 14
"""Of a weight that learns in a checkpoint: itself, and its master copy and Adam's two states in fp32."""


def config_of(work: Work) -> dict:
    """Fields of config.json: of the fetched model, or as catalogue or recipe tell them. Raises InputError where none does."""
    source, folder = work.recipe.model.source, work.folder("fetch")
    if folder and (model := model_of(folder)):
        return _told(read_json(work.shelf.volumes.path(model.ref) / "config.json"))
    if source.kind == "starter":
        return _told(read_json(PACKAGE / "starter" / "model" / "config.json"))
    if isinstance(source, NewModel):
        return source.model_dump() | {"vocab_size": source.tokenizer.vocab_size, "model_type": "llama"}
    if source.kind == "hub":
        known = models.find(source.repo)
        if known and not known.shape.experts:
            config = known.shape.model_dump(exclude_none=True)
            if not families.missing(config):
                return config | {"model_type": CONVERTED.get(known.shape.family, known.shape.family)}
    what = "the model's shape is not known before it is fetched."
    raise InputError(what, str(work.path), f"Run 'invoke fetch {work.recipe.name}' first.")


def _told(config: dict) -> dict:
    if families.mixes(config):
        raise InputError("no plans are made for mixtures of experts: not all of their weights work on a token.")
    if missing := families.missing(config):
        raise InputError(f"plans are made for models like Llama; config.json has no {', '.join(missing)}.")
    return config


def setup_of(work: Work, gpus: int) -> Setup:
    """What counts of a recipe on `gpus` of one kind. Raises InputError where nothing is trained, or a batch cannot be shared."""
    recipe = work.recipe
    if not recipe.train.epochs:
        raise InputError("nothing is trained: train.epochs is 0.", str(work.path))
    if gpus < 1:
        raise InputError(f"{gpus} is no count of GPUs.", "--gpus", "Give 1 or more.")
    config = config_of(work)
    shape, known = _adapted(work, config), families.kind(config) in families.NORM_OFFSETS
    _refuse_uneven(recipe.train.global_batch_size, recipe.runtime.micro_batch_size, gpus)
    more = targets.more_learns(_given(work))
    return Setup.of(recipe.train.model_dump(), recipe.runtime.model_dump(), shape, gpus, known, more)


def _refuse_uneven(batch: int, micro: int, gpus: int) -> None:
    if batch % (micro * gpus):
        what = f"train.global_batch_size {batch} cannot be shared by {gpus} GPU{'s' * (gpus > 1)} with micro-batches of {micro}."
        fitting = [size for size in range(1, micro) if not batch % (size * gpus)]
        remedy = f"Add --set runtime.micro_batch_size={fitting[-1]}." if fitting else "Give another count, or another batch."
        raise InputError(what, "--gpus", remedy)


def _adapted(work: Work, config: dict) -> memory.Shape:
    """The model under its adapters. Raises InputError where no layer gets one."""
    train, wanted = work.recipe.train, _targets(work)
    shape = memory.Shape.of(config, train.lora.rank)
    if train.method == "full" or families.kind(config) not in families.NAMED:
        return shape
    found = targets.under(shape, wanted)
    if not found.adapters:
        what = f"train.lora.target_modules names no linear layer of the model: {_listed(wanted)}."
        raise InputError(what, str(work.path), f"Its layers are called {', '.join(targets.called(shape))}.")
    return found


def _targets(work: Work) -> targets.Targets:
    """Layers that get adapters: of the adapter that training begins with, or as the recipe says."""
    config = _given(work)
    if bad := bad_patterns(config):
        raise InputError(f"the adapter cannot be used: {bad[0]}.", str(work.recipe.model.adapter))
    return config.get("target_modules") or work.recipe.train.lora.target_modules


def _given(work: Work) -> dict:
    """The configuration of the adapter that training begins with; empty if there is none."""
    return {} if work.inputs.adapter is None else read_json(work.shelf.volumes.path(f"{work.inputs.adapter['ref']}/{ADAPTER[0]}"))


def _listed(wanted: targets.Targets) -> str:
    return wanted if isinstance(wanted, str) else ", ".join(wanted)


def plans(work: Work, names: list[str], gpus: int) -> list[Estimate]:
    """One for each card, the smallest that suffices first. Raises InputError where there can be none."""
    setup, span = setup_of(work, gpus), _span(work)
    able = [card for name in names or cards.CARDS if (card := cards.CARDS[name]).rate_8 or setup.base != "fp8"]
    found = [Estimate.of(setup, card, span) for card in able]
    if not found:
        raise InputError(f"{names[0]} has no products of 8-bit floats.", "--gpu", "Set train.base.type to nf4, or name another card.")
    return found if names else sorted(found, key=lambda plan: (not plan.fits, plan.card.memory, -plan.card.rate))


def facts_of(work: Work) -> dict | None:
    """What `prepare` counted, here or where the lock was made of the same recipe by the same versions; None before it has run."""
    locked = work.lock.get("stages", {}).get("prepare", {})
    found = work.records().get("prepare") or (locked if locked.get("key") == keys(work.stages)["prepare"] else {})
    return found.get("facts")


def _span(work: Work) -> float | None:
    """Mean tokens of a document; None before `prepare` has counted them."""
    facts = facts_of(work)
    return facts["tokens"] / facts["conversations"] if facts else None


def steps_of(work: Work) -> int | None:
    """Optimizer steps of the whole training; None before `prepare` has counted the packs."""
    facts, train = facts_of(work), work.recipe.train
    return steps(facts["packs"], train.epochs, train.global_batch_size) if facts else None


def told(work: Work, names: list[str], gpus: int, price: float | None) -> str:
    """The plans as a table; with one card, its memory by component too, and what would fit if it does not."""
    made, count = plans(work, names, gpus), steps_of(work)
    parts = [_table([_row(plan, count, price) for plan in made], count)]
    if len(made) == 1:
        parts += _by_component(made[0])
        parts += [] if made[0].fits else [advice.told(made[0])]
    return "\n\n".join([*parts, "\n".join(map(filled, _notes(work, made[0].setup, count, price)))])


COLUMNS = ("card", "GiB", "fits", "tokens/s", "time", "cost", "recomputed", "16-bit", "on host")


def _table(rows: list[tuple[str, ...]], count: int | None) -> str:
    """Without the columns in which no row has anything; `count`: steps, if they are known."""
    columns = [name if count or name != "time" else "a step" for name in COLUMNS]
    used = [place for place in range(len(COLUMNS)) if any(row[place] for row in rows)]
    return fitted([[row[place] for place in used] for row in rows], [columns[place] for place in used])


def _row(plan: Estimate, count: int | None, price: float | None) -> tuple[str, ...]:
    hours, gpus, choice = plan.step_seconds * (count or 1) / 3600, plan.setup.ranks, plan.choice
    host = [*choice.host.told, *(name for name in plan.host if name == "optimizer" or not plan.setup.fast)]
    return (
        plan.card.name if gpus == 1 else f"{gpus} x {plan.card.name}",
        f"{plan.needed:.1f} of {plan.card.memory:g}",
        "yes" if plan.fits else "no",
        f"{plan.speed:,.0f}",
        duration(hours * 3600) if count or hours * 3600 >= 1 else f"{hours * 3.6e6:.0f} ms",
        "" if price is None or not count else f"{hours * gpus * price:,.2f}",
        choice.again,
        f"{choice.dense} layers" if choice.dense else "",
        ", ".join(host),
    )


def _by_component(plan: Estimate) -> list[str]:
    each = "" if plan.setup.ranks == 1 else " of each GPU"
    parts = [(name, f"{size / GIB:.2f} GiB") for name, size in plan.parts.items()]
    tables = [table([*parts, ("all", f"{plan.needed:.2f} GiB of {plan.card.memory:g}")], (f"memory{each}", ""))]
    host = [(name, f"{size / GIB:.2f} GiB") for name, size in plan.host.items()]
    return [*tables, *([table(host, (f"host memory{each}", ""))] if host else [])]


def _notes(work: Work, setup: Setup, count: int | None, price: float | None) -> list[str]:
    shape, train, name = setup.shape, work.recipe.train, work.recipe.name
    unknown = "Time and cost of the whole are" if price is not None else "The time of the whole is"
    disk = CHECKPOINT_BYTES * setup.learning * (train.keep + 2) / 1e9
    size = (shape.linear + shape.embedding) * memory.HALF / 1e9
    return [
        f"{count:,} steps." if count else f"{unknown} known when 'invoke prepare {name}' has counted the steps.",
        *([f"Transformers' own step, since {setup.why_stock}."] if setup.why_stock else []),
        *([] if setup.full else _of_adapters(work, shape)),
        _of_model(work, size),
        f"Checkpoints take up to {_gb(disk)}.",
    ]


def _gb(size: float) -> str:
    return f"{size:.1f} GB" if size >= 0.95 else f"{size * 1000:,.0f} MB"


def _of_model(work: Work, size: float) -> str:
    """What its weights take: where they come from, and on the disk."""
    source = work.recipe.model.source
    merged = "" if isinstance(source, NewModel) else ", and as much again merged"
    comes = " to download" if source.kind == "hub" and not work.folder("fetch") else ""
    return f"The model is {_gb(size)}{comes}{merged}."


def _of_adapters(work: Work, shape: memory.Shape) -> list[str]:
    """What there is to say of the layers that get adapters, if it is not all of them."""
    wanted, kind = _targets(work), families.kind(config_of(work))
    if wanted == targets.EVERY:
        return []
    if kind not in families.NAMED:
        return [f"Planned as if all linear layers got adapters: what those of '{kind}' are called is not known here."]
    vain = [] if isinstance(wanted, str) else targets.in_vain(shape, wanted)
    missing = [f"The model has no linear layer {', '.join(vain)} (train.lora.target_modules)."] if vain else []
    return [f"Adapters of {shape.adapters / 1e6:,.1f} million weights, on {_listed(wanted)}.", *missing]
