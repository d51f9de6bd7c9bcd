"""Loads what answers: a merged folder, or a base with its adapter, in 16, 8 or 4 bit. No code of a folder is ever run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

import tunestation.models.alibi  # the Auto classes know Baichuan-13B then
import tunestation.models.products  # noqa: F401  CPUs without 16-bit products multiply in 32 bits then
from tunestation.chat import fp8
from tunestation.chat.probes import check_probes
from tunestation.chat.scheduler import is_out_of_memory
from tunestation.chat.weights import Weights
from tunestation.errors import InputError, TunestationError
from tunestation.models.four_bit import keep_weights_in_place


@dataclass(frozen=True)
class Loaded:
    """A model ready to answer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    untuned: Callable[[bool], None] | None
    """Called with True, the model answers without its adapter from then on; None without an adapter."""
    size: int
    """Weights of the model, without the adapter."""


def load(weights: Weights) -> Loaded:
    """Load everything.

    Raises InputError when a folder is no whole model, makes other token ids than training saw, or this machine cannot do the precision.
    """
    folder = Path(weights.model)
    if not (folder / "config.json").is_file():
        raise InputError("There is no model here: config.json is missing.", str(folder), "Make it again with 'invoke reproduce'.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(weights.tokenizer or folder, local_files_only=True)
        if weights.probe:
            check_probes(tokenizer, Path(weights.probe))
        options = _options(weights, folder)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True, **options)
        size = model.num_parameters()
        keep_weights_in_place(model)
        adapted = PeftModel.from_pretrained(model, weights.adapter, local_files_only=True) if weights.adapter else None
        if weights.precision == "fp8":
            fp8.convert(model, _device())
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if is_out_of_memory(error):
            what, remedy = "The model does not fit in memory.", "Close other programs that use it, or load fewer bits: --load nf4."
            raise TunestationError(what, str(folder), remedy) from error
        raise InputError(f"The model cannot be loaded: {error}", str(folder)) from error
    return Loaded(model.eval(), tokenizer, _switch(adapted) if adapted else None, size)


def _switch(adapted: PeftModel) -> Callable[[bool], None]:
    """Touches the layers only on a change: there are hundreds, and it is called before every token."""
    now = False

    def untuned(wanted: bool) -> None:
        nonlocal now
        if wanted != now:
            (adapted.base_model.disable_adapter_layers if wanted else adapted.base_model.enable_adapter_layers)()
            now = wanted

    return untuned


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _options(weights: Weights, folder: Path) -> dict:
    saved = AutoConfig.from_pretrained(folder, local_files_only=True).dtype
    dtype = torch.float32 if saved == torch.float32 and not torch.cuda.is_available() else torch.bfloat16
    # fp8 is made of the 16-bit weights, layer by layer on their way from host memory to the GPU
    place = {} if weights.precision == "fp8" else {"device_map": "auto" if torch.cuda.is_available() else "cpu"}
    quantised = _quantised(weights, dtype)
    return {"dtype": dtype, **place, **({"quantization_config": quantised} if quantised else {})}


def _quantised(weights: Weights, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if weights.precision == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    if weights.precision == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=weights.double_quant,
            bnb_4bit_compute_dtype=dtype,
        )
    return None
