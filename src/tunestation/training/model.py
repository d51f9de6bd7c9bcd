"""The model to train: loaded or new, frozen under adapters or free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

import tunestation.models.alibi  # the Auto classes know Baichuan-13B then
import tunestation.models.products  # noqa: F401  CPUs without 16-bit products multiply in 32 bits then
from tunestation.errors import InputError, Problem, some
from tunestation.models.experts import refuse_quantised
from tunestation.models.four_bit import keep_weights_in_place
from tunestation.settings import local_rank
from tunestation.training.arriving import through
from tunestation.training.memory import ALL_THERE, Host


def device() -> torch.device:
    """This process's device: its GPU, or the CPU."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder of ours, with its chat template."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def new_model(shape: dict, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A Llama of `shape` with random weights from torch's current seed, in bfloat16."""
    config = LlamaConfig(
        **shape,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")


def load_base(folder: Path, quantise: dict | None, sharded: bool = False, host: Host = ALL_THERE) -> PreTrainedModel:
    """The model of `folder` in bfloat16, its linear layers in 4 bit if `quantise` ({type, double_quant}) is given.

    `sharded` (ZeRO-3) packs the 4-bit weights into bfloat16: it shards weights of one dtype only. What `host` says waits in host memory is
    never on the GPU, but for one 4-bit weight at a time while it is quantised. Then all that is not in 4 bit is left in host memory, as is
    the whole model without `quantise`: DeepSpeed moves what does not wait.
    Raises InputError for a mixture of experts in 4 bit, and for weights that do not fill the architecture.
    """
    options: dict = {"dtype": torch.bfloat16, "local_files_only": True, "use_safetensors": True}
    if quantise is None:
        return _loaded(folder, options)
    refuse_quantised(folder)
    options["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantise["type"],
        bnb_4bit_use_double_quant=quantise["double_quant"],
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=torch.bfloat16 if sharded else torch.uint8,
    )
    if host.told:
        with through(device(), host.weights):
            model = _loaded(folder, options | {"device_map": {"": "cpu"}})
    else:
        place = None if sharded else {"": device()}  # transformers wants no map under ZeRO-3 and takes this process's device
        model = _loaded(folder, options | {"device_map": place})
    keep_weights_in_place(model)
    return model


def _loaded(folder: Path, options: dict) -> PreTrainedModel:
    """transformers would fill what is missing with random numbers, and only warn."""
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    shapes = sorted(f"{name} {list(stored)} instead of {list(wanted)}" for name, stored, wanted in found["mismatched_keys"])
    other = {name for name, _, _ in found["mismatched_keys"]}
    wrong = {"lacks weights": sorted(set(found["missing_keys"]) - other), "has weights of another shape than config.json says": shapes}
    remedy = "Fetch it again, or copy all files of one revision."
    problems = [Problem(f"{what}: {some(names)}.", str(folder), remedy) for what, names in wrong.items() if names]
    if problems:
        raise InputError(problems=problems)
    return model


def add_adapters(model: PreTrainedModel, lora: dict, base: str) -> torch.nn.Module:
    """Freeze `model` and put LoRA adapters of {rank, alpha, dropout, target_modules} over its linear layers.

    The adapter names its base as `base`; peft would write the folder of this machine into every checkpoint.
    """
    targets = lora["target_modules"] if lora["target_modules"] != "all-linear" else _every_linear(model)
    config = LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=targets if isinstance(targets, str) else list(targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:  # peft's own class for this is younger than some of its versions
        if "arget modules" not in str(error):
            raise
        raise InputError(f"no layer of this model is called as train.lora.target_modules says ({_shown(targets)}).",
                         remedy=f"Its layers are: {', '.join(_names(model))}.") from None
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted


def _shown(targets: str | Sequence[str]) -> str:
    return targets if isinstance(targets, str) else ", ".join(targets)


def _names(model: PreTrainedModel) -> list[str]:
    """What the linear layers of `model` but its head are called, each once."""
    head = model.get_output_embeddings()
    layers = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head)
    return sorted({name.rpartition(".")[2] for name in layers})


def go_on_from(model: PreTrainedModel, adapter: Path, dropout: float, base: str) -> torch.nn.Module:
    """Freeze `model` and put the LoRA adapter in the folder `adapter` over it, which learns on; its base is called `base`."""
    config = LoraConfig.from_pretrained(str(adapter), local_files_only=True)
    config.lora_dropout, config.inference_mode = dropout, False
    adapted = PeftModel.from_pretrained(model, str(adapter), config=config, is_trainable=True, local_files_only=True)
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted


def _every_linear(model: PreTrainedModel) -> str | list[str]:
    """What `all-linear` means: with experts the attention's layers, as peft would take the experts' 3-d parameters too,
    which cannot be merged into plain weights."""
    if not any(weight.dim() > 2 for weight in model.parameters()):
        return "all-linear"
    names = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return sorted({name.rpartition(".")[2] for name in names if ".self_attn." in name})


def plain(model: torch.nn.Module) -> PreTrainedModel:
    """transformers' model, under adapters or not."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def trainable(model: torch.nn.Module) -> int:
    """Weights that learn."""
    return sum(_count(weight) for weight in model.parameters() if weight.requires_grad)


def total(model: torch.nn.Module) -> int:
    """All weights."""
    return sum(_count(weight) for weight in model.parameters())


def stored(model: torch.nn.Module) -> int:
    """Numbers that all weights are held in: 4-bit ones are packed."""
    return sum(getattr(weight, "ds_numel", weight.numel()) for weight in model.parameters())


def _count(weight: torch.nn.Parameter) -> int:
    """Weights behind a parameter: 4-bit ones are packed in pairs or more, and ZeRO-3 leaves a shard of the rest."""
    state = getattr(weight, "quant_state", None)
    return state.shape.numel() if state is not None else getattr(weight, "ds_numel", weight.numel())
