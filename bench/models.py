"""Models of known shapes with random weights, made on the device: what a step costs does not depend on what the weights say."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

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
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = LlamaForCausalLM(configuration(shape))
    finally:
        torch.set_default_dtype(default)
    model.config._attn_implementation = "sdpa"
    model.config.use_cache = False
    if base == "nf4":
        to_nf4(model, device)
    lora = LoraConfig(r=rank, lora_alpha=16, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.01)
    if base == "fp8":
        from tunestation.training.fast.float8 import quantise_base

        quantise_base(adapted, device)
    return adapted


def to_nf4(model: nn.Module, device: torch.device) -> None:
    """Every linear layer but the head in NF4 with double quantisation, as bitsandbytes and transformers load it."""
    import bitsandbytes as bnb

    for module in list(model.model.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                options = {"bias": False, "compute_dtype": torch.bfloat16, "quant_type": "nf4", "device": "meta"}
                layer = bnb.nn.Linear4bit(child.in_features, child.out_features, **options)
                layer.weight = bnb.nn.Params4bit(child.weight.data, requires_grad=False, quant_type="nf4").to(device)
                layer.support_avx512bf16_for_cpu = False
                setattr(module, name, layer)
