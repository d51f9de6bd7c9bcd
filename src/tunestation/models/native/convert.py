"""Conversion of a folder in a family's layout into one that transformers loads by itself, and the way back."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tunestation.errors import InputError, Problem, some
from tunestation.models.folder import licences
from tunestation.models.limits import RECORD
from tunestation.models.native.clean import clean
from tunestation.models.native.family import Family
from tunestation.models.native.registry import family_named, family_of, version_of
from tunestation.models.native.tensors import Plan, planned, planned_back
from tunestation.models.native.vocabularies import chat_template, write_tokenizer
from tunestation.models.shards import Planned, Shards, write_shards
from tunestation.pipeline.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHARD = 2 * 10**9
"""Bytes of a shard: what an interrupted conversion does again at most."""
SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "max_length")


def convert(source: Path, into: Path, digests: dict[str, str], name: str) -> dict[str, str]:
    """Write the model of `source`, called `name`, into `into`, as transformers loads it without code; returns digests of weight files.

    `digests` (file -> SHA-256 of the source) go into the record. A folder that an interrupted run left is completed.
    Raises InputError for tensors that do not fit the family, for a variant that cannot be converted, and for pickles
    that want more than tensors.
    """
    config = read_json(source / "config.json")
    family = family_of(config)
    if family:
        refuse_variant(family, config, name)
        written = _convert_family(family, config, source, into, name)
    else:
        written = clean(source, into, SHARD)
    limit = family.limit(config) if family else None
    record = {"family": family.name if family else None, "version": version_of(family), "config": config, "source": digests}
    write_json(into / RECORD, record | {"limit": asdict(limit) if limit else None})
    return written


def _convert_family(family: Family, config: dict, source: Path, into: Path, name: str) -> dict[str, str]:
    files = _json_files(source)
    shards = Shards(source)
    plan = planned(family, config, shards)
    into.mkdir(parents=True, exist_ok=True)
    biased = any(tensor.name.endswith("self_attn.q_proj.bias") for tensor in plan.tensors)
    tokenizer = write_tokenizer(family, source, config, chat_template(family, config, files), into)
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    write_json(into / "config.json", _config(family, config, biased, plan.tensors) | ids)
    write_json(into / "generation_config.json", _sampling(files["generation"]) | ids | _stops(family, files, tokenizer))
    _refuse_misfits(into, plan, f"{name} ({family.name})")
    _copy_others(source, into, family.vocabulary(config).file)
    return write_shards(plan.tensors, into, SHARD, shards.release)


def export_back(source: Path, record: dict, into: Path) -> dict[str, str]:
    """Write a model in our layout (`source`) back into that of its family; returns the digests of the weight files.

    `record` is the content of the `conversion.json` that its base has.
    """
    shards = Shards(source)
    into.mkdir(parents=True, exist_ok=True)
    write_json(into / "config.json", record["config"])
    family = family_named(record["family"])
    _copy_others(source, into, family.vocabulary(record["config"]).file)
    return write_shards(planned_back(family, record["config"], shards), into, SHARD, shards.release)


def refuse_variant(family: Family, config: dict, name: str) -> None:
    """Raise InputError for a variant of the family that has other equations."""
    reason = family.obstacle(config)
    if reason:
        raise InputError(f"is a {family.name} model that cannot be converted: {reason}.", name, "Use the family's plain model.")


def _json_files(source: Path) -> dict:
    def read(name: str) -> dict:
        return read_json(source / name) if (source / name).is_file() else {}

    return {"generation": read("generation_config.json"), "tokenizer": read("tokenizer_config.json")}


def _config(family: Family, config: dict, biased: bool, plan: list[Planned]) -> dict:
    dtypes = {str(tensor.meta.dtype).removeprefix("torch.") for tensor in plan if tensor.meta.dim() == 2}
    return family.config(config, biased) | {
        "model_type": family.target,
        "tie_word_embeddings": False,
        "initializer_range": config.get("initializer_range", 0.02),
        "torch_dtype": dtypes.pop() if len(dtypes) == 1 else "bfloat16",
        "use_cache": True,
    }


def _sampling(given: dict) -> dict:
    """How the family's chat samples, without what only its own code reads."""
    return {key: given[key] for key in SAMPLING if key in given} if given.get("do_sample") else {}


def _stops(family: Family, files: dict, tokenizer: PreTrainedTokenizerFast) -> dict:
    """Where generation ends: eos, and for a chat model the end of a turn."""
    chat = family.chat(files)
    stops = [tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(text) for text in (chat.stop if chat else ()))]
    return {"eos_token_id": stops if len(stops) > 1 else stops[0]}


def _copy_others(source: Path, into: Path, vocabulary: str) -> None:
    """The licence, and the vocabulary as it came: llama.cpp reads it, and the way back needs it."""
    for path in (source / vocabulary, *licences(source)):
        if path.is_file():
            shutil.copyfile(path, into / path.name)


def _refuse_misfits(into: Path, plan: Plan, name: str) -> None:
    """Compare with what transformers is going to look for: names and shapes, before gigabytes are written."""
    from tunestation.models.architecture import misfits, shapes_of

    remedy = "Fetch it again, or use the family's plain model."
    unknown = [Problem(f"has tensors that the family does not have: {some(plan.unknown)}.", name, remedy)] if plan.unknown else []
    if problems := [*unknown, *misfits(shapes_of(into), plan.tensors, name, remedy, plan.misshapen)]:
        raise InputError(problems=problems)
