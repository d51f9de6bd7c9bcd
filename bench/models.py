"""Models of known shapes with random weights, made on the device: what a step costs does not depend on what the weights say."""

from __future__ import annotations

import warnings

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft asks it of transformers

SHAPES = {
    "internlm2-7b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "internlm2-1.8b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 16},
}
VOCABULARY = 92544


def configuration(shape: str) -> LlamaConfig:
    """Of a model of `shape`."""
    vocabulary = VOCABULARY if shape != "tiny" else 512
    return LlamaConfig(**SHAPES[shape], num_key_value_heads=8, vocab_size=vocabulary, max_position_embeddings=32768)


def build(shape: str, base: str, rank: int = 64, dropout: float = 0.0) -> nn.Module:
    """A Llama of `shape` under fp32 LoRA adapters, B not zero, on all linear layers but the head; `base`: nf4, fp8 or bf16."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = empty(shape)
    draw(model, device, four_bit=base == "nf4")
    lora = LoraConfig(r=rank, lora_alpha=16, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.01)
    if base == "fp8":
        from tunestation.training.fast.float8 import quantise_base

        quantise_base(adapted, device)
    return adapted


def empty(shape: str) -> nn.Module:
    """A Llama of `shape` in bfloat16 without memory for its weights."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = LlamaForCausalLM(configuration(shape))
    finally:
        torch.set_default_dtype(default)
    model.config._attn_implementation = "sdpa"
    model.config.use_cache = False
    return model


def draw(model: nn.Module, device: torch.device, four_bit: bool) -> None:
    """Random weights on `device`, a matrix after the other, so that a card needs no more memory than what stays and one of them.

    They are the same with `four_bit`, where every linear layer but the head is turned into NF4 as soon as it is drawn. All these are drawn
    in one place, as training reads them: each in its own would leave gaps among 4-bit weights.
    """
    passing = [module for module in model.modules() if four_bit and isinstance(module, nn.Linear) and module is not model.lm_head]
    stage = torch.empty(max((module.weight.numel() for module in passing), default=0), dtype=torch.bfloat16, device=device)
    for name, module in list(model.named_modules()):
        passes = module in passing
        for kind, weight in list(module.named_parameters(recurse=False)):
            made = stage[: weight.numel()].view(weight.shape) if passes else torch.empty(weight.shape, dtype=weight.dtype, device=device)
            made = made.fill_(1) if made.dim() == 1 else made.normal_(0, model.config.initializer_range)
            setattr(module, kind, nn.Parameter(made))
        if passes:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, in_nf4(module, device))
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)


def in_nf4(linear: nn.Linear, device: torch.device) -> nn.Module:
    """A linear layer in NF4 with double quantisation, as bitsandbytes and transformers load it."""
    import bitsandbytes as bnb

    options = {"bias": False, "compute_dtype": torch.bfloat16, "quant_type": "nf4", "device": "meta"}
    layer = bnb.nn.Linear4bit(linear.in_features, linear.out_features, **options)
    layer.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4").to(device)
    layer.support_avx512bf16_for_cpu = False
    return layer
