"""merge: base and adapter become one folder of safetensors that AutoModelForCausalLM loads anywhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from tunestation.errors import TunestationError
from tunestation.fetching.manifest import model_of
from tunestation.pipeline.digest import files_below
from tunestation.pipeline.files import read_json, write_json
from tunestation.pipeline.job import Job, Result
from tunestation.stages.convert import ADAPTER, ADAPTER_CONFIG
from tunestation.training.model import load_tokenizer


def run(params: dict, job: Job) -> Result:
    """Write the merged model with tokenizer, chat template and generation config."""
    tokenizer = load_tokenizer(job.needs["prepare"] / "tokenizer")
    model = _merged(job, getattr(torch, params["dtype"]))
    model.generation_config = generation_config(params["generation"], tokenizer)
    model.config.use_cache = True
    model.save_pretrained(job.output, max_shard_size=params["shard_size"])
    tokenizer.save_pretrained(job.output)
    _forget_paths(job.output)
    size = sum((job.output / name).stat().st_size for name in files_below(job.output))
    weights = sum(tensor.numel() for tensor in model.parameters())
    print(f"  {weights:,} weights in {params['dtype']}, {size / 1e6:,.1f} MB", flush=True)
    return Result(facts={"weights": weights, "dtype": params["dtype"]})


def _merged(job: Job, dtype: torch.dtype) -> PreTrainedModel:
    options = {"dtype": dtype, "local_files_only": True, "use_safetensors": True}
    converted = job.needs["convert"]
    if not (converted / ADAPTER_CONFIG).is_file():
        model, told = AutoModelForCausalLM.from_pretrained(converted, output_loading_info=True, **options)
        _complete(told["missing_keys"], converted)
        return model
    base = AutoModelForCausalLM.from_pretrained(job.volumes.path(model_of(job.needs["fetch"]).ref), **options)
    adapted = PeftModel.from_pretrained(base, converted, local_files_only=True)
    with safe_open(converted / ADAPTER, framework="pt") as adapter:
        _complete(set(get_peft_model_state_dict(adapted, save_embedding_layers=False)).difference(adapter.keys()), converted)
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer):
            _add_update(layer, dtype)
    merged = adapted.unload()
    _finite(merged)
    return merged


def _complete(missing: Iterable[str], folder: Path) -> None:
    """A weight that is not there would be filled with random numbers or zeros, and only a warning would say so."""
    names = sorted(missing)
    if names:
        raise TunestationError(f"{len(names)} weights are missing, first {names[0]}.", str(folder), "Train again with --force.")


@torch.no_grad()
def _add_update(layer: LoraLayer, dtype: torch.dtype) -> None:
    """W + scale x B A in fp32, rounded once (peft's own merge rounds the update before adding it)."""
    weight = layer.get_base_layer().weight
    (adapter,) = layer.active_adapters
    weight.data = (weight.float() + layer.get_delta_weight(adapter).float()).to(dtype)


def _finite(model: PreTrainedModel) -> None:
    bad = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    if bad:
        raise TunestationError(f"the merge made weights that are not finite, first {bad[0]}.", remedy="Lower train.learning_rate.")


def generation_config(wanted: dict, tokenizer: object) -> GenerationConfig:
    """How the folder answers where nobody says otherwise; it stops at the template's stop token."""
    sample = {name: wanted[name] for name in ("temperature", "top_p", "top_k")} if wanted["temperature"] else {}
    return GenerationConfig(
        do_sample=bool(sample),
        **sample,
        repetition_penalty=wanted["repetition_penalty"],
        max_new_tokens=wanted["max_new_tokens"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _forget_paths(folder: Path) -> None:
    """config.json keeps no path of this machine; caches of the library are no part of a model."""
    config = folder / "config.json"
    value = read_json(config)
    value.pop("_name_or_path", None)
    write_json(config, value)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
