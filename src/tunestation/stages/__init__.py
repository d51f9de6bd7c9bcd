"""The whole pipeline on one screen: each stage, what it may know of the recipe, and which stages it reads."""

from __future__ import annotations

from tunestation.pipeline.stage import Stage
from tunestation.recipe.schema import Recipe
from tunestation.recipe.sources import NewModel
from tunestation.stages.inputs import Inputs

TOKENS = ("transformers", "tokenizers", "datasets", "pyarrow")
TRAINING = ("torch", "transformers", "peft", "bitsandbytes", "deepspeed", "accelerate")


def build_stages(recipe: Recipe, inputs: Inputs) -> list[Stage]:
    """The stages of `recipe`, in order; `inputs` are the commits and local files that its sources stand for."""
    model, base = _model(recipe, inputs), recipe.model.source
    fetch = Stage("fetch", "tunestation.stages.fetch:run", {"model": model, "data": list(inputs.fetched)}, version=2)
    prepare = Stage(
        "prepare",
        "tunestation.stages.prepare:run",
        {
            "parts": [part | found for part, found in zip(_parts(recipe), inputs.parts, strict=True)],
            "template": recipe.template,
            "template_text": inputs.template_text,
            "tokenizer": base.tokenizer.model_dump() if isinstance(base, NewModel) else None,
            "held_out_fraction": recipe.evaluate.fraction,
            "max_dropped": recipe.data.max_dropped,
            **_pick(recipe.train, "objective", "train_on", "max_tokens", "packing", "seed"),
        },
        needs=("fetch",),
        tools=TOKENS,
        version=2,
        # It tokenises on all cores. Elsewhere that stays off: threads of the tokenizer do not survive a fork, as of a data loader.
        variables=(("TOKENIZERS_PARALLELISM", "true"),),
        exact=True,
    )
    train = Stage(
        "train",
        "tunestation.stages.train:run",
        {
            "settings": recipe.train.model_dump(mode="json") | {"learning_rate": recipe.train.peak_learning_rate},
            "new_model": base.model_dump(exclude={"kind", "tokenizer"}) if isinstance(base, NewModel) else None,
            "samples": _pick(recipe.evaluate, "prompts", "system", "every_steps", "max_new_tokens"),
        },
        needs=("fetch", "prepare"),
        tools=TRAINING,
        version=3,
        graceful=True,
        resumes=True,
        distributed=True,
    )
    convert = Stage(
        "convert",
        "tunestation.stages.convert:run",
        {"checkpoint": recipe.export.checkpoint},
        needs=("fetch", "train"),
        tools=("safetensors",),
        version=2,
        exact=True,
    )
    merge = Stage(
        "merge",
        "tunestation.stages.merge:run",
        {
            **_pick(recipe.export, "dtype", "shard_size", "base", "gguf", "max_kl"),
            "trained_base": recipe.train.base.model_dump() if recipe.train.method == "qlora" else None,
            "generation": recipe.chat.generation.model_dump(),
            "name": recipe.name,
        },
        needs=("fetch", "prepare", "train", "convert"),
        tools=("torch", "transformers", "peft", "safetensors", *(["gguf"] if recipe.export.gguf else [])),
        version=3,
        resumes=True,
    )
    checks = [check.model_dump(mode="json") | found for check, found in zip(recipe.evaluate.checks, inputs.checks, strict=True)]
    evaluate = Stage(
        "evaluate",
        "tunestation.stages.evaluate:run",
        {"checks": checks},
        needs=("fetch", "prepare", "merge"),
        tools=("torch", "transformers"),
    )
    return [fetch, prepare, train, convert, merge, *([evaluate] if checks else [])]


def _pick(part: object, *names: str) -> dict:
    values = {name: getattr(part, name) for name in names}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _model(recipe: Recipe, inputs: Inputs) -> dict:
    source = recipe.model.source
    if source.kind == "hub":
        return {"kind": "hub", "hub": source.hub, "repo": source.repo, "commit": inputs.model_commit or source.revision}
    if source.kind == "folder":
        return {"kind": "folder", "ref": inputs.model_ref}
    return {"kind": source.kind}


def _parts(recipe: Recipe) -> list[dict]:
    return [part.model_dump(mode="json", exclude={"source"}) for part in recipe.data.sources]
