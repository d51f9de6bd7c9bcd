"""The whole pipeline: each stage, what it may know of the recipe, and which stages it reads."""

from __future__ import annotations

from tunestation.pipeline.stage import Stage
from tunestation.recipe.schema import Recipe
from tunestation.recipe.sources import NewModel
from tunestation.stages.inputs import Inputs


def build_stages(recipe: Recipe, inputs: Inputs) -> list[Stage]:
    """The stages of `recipe`, in order; `inputs` are the commits and local files that its sources stand for."""
    asked = [_evaluate(recipe, inputs)] if recipe.evaluate.checks else []
    return [_fetch(recipe, inputs), _prepare(recipe, inputs), _train(recipe, inputs), _convert(recipe), _merge(recipe), *asked]


def _fetch(recipe: Recipe, inputs: Inputs) -> Stage:
    params = {"model": _model(recipe, inputs), "data": list(inputs.fetched)}
    params |= {"conversions": inputs.conversions} if inputs.conversions else {}
    return Stage("fetch", "tunestation.stages.fetch:run", params, version=2)


def _prepare(recipe: Recipe, inputs: Inputs) -> Stage:
    model, parts = recipe.model.source, [part.model_dump(mode="json", exclude={"source"}) for part in recipe.data.sources]
    return Stage(
        "prepare",
        "tunestation.stages.prepare:run",
        {
            "parts": [part | found for part, found in zip(parts, inputs.parts, strict=True)],
            "template": recipe.template,
            "template_text": inputs.template_text,
            "tokenizer": model.tokenizer.model_dump() if isinstance(model, NewModel) else None,
            "held_out_fraction": recipe.evaluate.fraction,
            "max_dropped": recipe.data.max_dropped,
            **_pick(recipe.train, "objective", "train_on", "max_tokens", "packing", "seed"),
        },
        needs=("fetch",),
        tools=("transformers", "tokenizers", "datasets", "pyarrow"),
        # 3: documents begin with what a tokenizer without bos_token puts before every text
        version=3 if recipe.train.objective == "pretrain" else 2,
        # It tokenises on all cores. Elsewhere that stays off: threads of the tokenizer do not survive a fork, as of a data loader.
        variables=(("TOKENIZERS_PARALLELISM", "true"),),
        exact=True,
    )


def _train(recipe: Recipe, inputs: Inputs) -> Stage:
    model = recipe.model.source
    drops = recipe.train.method != "full" and recipe.train.lora.dropout > 0
    return Stage(
        "train",
        "tunestation.stages.train:run",
        {
            "settings": recipe.train.model_dump(mode="json") | {"learning_rate": recipe.train.peak_learning_rate},
            "new_model": model.model_dump(exclude={"kind", "tokenizer"}) if isinstance(model, NewModel) else None,
            "samples": _pick(recipe.evaluate, "prompts", "system", "every_steps", "max_new_tokens"),
            **({"adapter": inputs.adapter} if inputs.adapter else {}),
        },
        needs=("fetch", "prepare"),
        tools=("torch", "transformers", "peft", "bitsandbytes", "deepspeed", "accelerate"),
        version=5 if drops else 4,  # 4: DeepSpeed's buckets are those of the plan; 5: two places share a hash
        graceful=True,
        resumes=True,
        distributed=True,
    )


def _convert(recipe: Recipe) -> Stage:
    params = _pick(recipe.export, "checkpoint")
    needs, tools = ("fetch", "train"), ("safetensors",)
    return Stage("convert", "tunestation.stages.convert:run", params, needs, tools, version=2, exact=True)


def _merge(recipe: Recipe) -> Stage:
    return Stage(
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


def _evaluate(recipe: Recipe, inputs: Inputs) -> Stage:
    checks = [check.model_dump(mode="json") | found for check, found in zip(recipe.evaluate.checks, inputs.checks, strict=True)]
    needs, tools = ("fetch", "prepare", "merge"), ("torch", "transformers")
    return Stage("evaluate", "tunestation.stages.evaluate:run", {"checks": checks}, needs, tools)


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
