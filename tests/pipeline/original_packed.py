"""Baichuan, ChatGLM and Qwen: tiny models as published, and their equations (see original_families.py)."""

from __future__ import annotations

import math

import torch
from original_families import (
    FFN,
    GROUPS,
    HEAD,
    HEADS,
    HIDDEN,
    LAYERS,
    VOCABULARY,
    Original,
    Tensors,
    attend,
    norm_weight,
    random,
    rms_norm,
    rotate_halves,
    rotate_neighbours,
    silu,
)

SECOND = 125_696
"""Baichuan2's vocabulary, by which it is told from Baichuan."""


def baichuan(second: bool = False, alibi: bool = False, heads: int = HEADS) -> Original:
    vocabulary = SECOND if second else VOCABULARY
    length = {"model_max_length": 64} if alibi else {"max_position_embeddings": 64, "model_max_length": 64}
    config = {
        "model_type": "baichuan",
        "architectures": ["BaichuanForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": heads * HEAD,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **length,
    }
    g, hidden = torch.Generator().manual_seed(3), heads * HEAD
    tensors = {"model.embed_tokens.weight": random(g, vocabulary, hidden)}
    for n in range(LAYERS):
        layer = f"model.layers.{n}."
        tensors[f"{layer}self_attn.W_pack.weight"] = random(g, 3 * hidden, hidden)
        tensors[f"{layer}self_attn.o_proj.weight"] = random(g, hidden, hidden)
        if not alibi:
            tensors[f"{layer}self_attn.rotary_emb.inv_freq"] = torch.ones(HEAD // 2)
        tensors |= {f"{layer}mlp.{name}_proj.weight": random(g, FFN, hidden) for name in ("gate", "up")}
        tensors[f"{layer}mlp.down_proj.weight"] = random(g, hidden, FFN)
        tensors |= {f"{layer}{name}_layernorm.weight": 1 + random(g, hidden) for name in ("input", "post_attention")}
    tensors |= {"model.norm.weight": 1 + random(g, hidden), "lm_head.weight": random(g, vocabulary, hidden)}
    name = f"baichuan{'2' if second else ''}-{'13b' if alibi else '7b'}"
    return Original(name, config, tensors, baichuan_logits, "bin", ("W_pack", "o_proj", "gate_proj"))


def alibi_slopes(heads: int) -> list[float]:
    """As ALiBi's authors publish them: recursive for counts that are no power of two."""

    def powers(n: int) -> list[float]:
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    if math.log2(heads).is_integer():
        return powers(heads)
    closest = 2 ** math.floor(math.log2(heads))
    return powers(closest) + alibi_slopes(2 * closest)[0::2][: heads - closest]


def baichuan_logits(config: dict, tensors: Tensors, ids: list[int]) -> torch.Tensor:
    t = {name: tensor.double() for name, tensor in tensors.items()}
    eps, hidden, count = config["rms_norm_eps"], config["hidden_size"], config["num_attention_heads"]
    alibi = "max_position_embeddings" not in config
    slopes = alibi_slopes(count) if alibi else [0.0] * count
    x = t["model.embed_tokens.weight"][ids]
    for n in range(LAYERS):
        w = {name.removeprefix(f"model.layers.{n}."): tensor for name, tensor in t.items() if name.startswith(f"model.layers.{n}.")}
        packed = rms_norm(x, w["input_layernorm.weight"], eps) @ w["self_attn.W_pack.weight"].T
        q, k, v = packed[:, :hidden], packed[:, hidden : 2 * hidden], packed[:, 2 * hidden :]
        heads = []
        for head in range(count):
            c = slice(head * HEAD, (head + 1) * HEAD)
            a, b = (q[:, c], k[:, c]) if alibi else (rotate_halves(q[:, c], 10000.0), rotate_halves(k[:, c], 10000.0))
            heads.append(attend(a, b, v[:, c], slopes[head]))
        x = x + torch.cat(heads, -1) @ w["self_attn.o_proj.weight"].T
        h = rms_norm(x, w["post_attention_layernorm.weight"], eps)
        x = x + (silu(h @ w["mlp.gate_proj.weight"].T) * (h @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
    head = t["lm_head.weight"]
    if config["vocab_size"] == SECOND:
        head = head / head.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return rms_norm(x, t["model.norm.weight"], eps) @ head.T


def chatglm() -> Original:
    config = {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "padded_vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "ffn_hidden_size": FFN,
        "kv_channels": HEAD,
        "num_layers": LAYERS,
        "num_attention_heads": HEADS,
        "multi_query_attention": True,
        "multi_query_group_num": GROUPS,
        "seq_length": 64,
        "layernorm_epsilon": 1e-5,
        "rmsnorm": True,
        "post_layer_norm": True,
        "apply_residual_connection_post_layernorm": False,
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    g = torch.Generator().manual_seed(4)
    packed = (HEADS + 2 * GROUPS) * HEAD
    tensors = {"transformer.embedding.word_embeddings.weight": random(g, VOCABULARY, HIDDEN)}
    tensors["transformer.rotary_pos_emb.inv_freq"] = torch.ones(HEAD // 4)
    for n in range(LAYERS):
        layer = f"transformer.encoder.layers.{n}."
        tensors[f"{layer}self_attention.query_key_value.weight"] = random(g, packed, HIDDEN)
        tensors[f"{layer}self_attention.query_key_value.bias"] = random(g, packed)
        tensors[f"{layer}self_attention.dense.weight"] = random(g, HIDDEN, HIDDEN)
        tensors[f"{layer}mlp.dense_h_to_4h.weight"] = random(g, 2 * FFN, HIDDEN)
        tensors[f"{layer}mlp.dense_4h_to_h.weight"] = random(g, HIDDEN, FFN)
        tensors |= {f"{layer}{name}_layernorm.weight": norm_weight(g) for name in ("input", "post_attention")}
    tensors["transformer.encoder.final_layernorm.weight"] = norm_weight(g)
    tensors["transformer.output_layer.weight"] = random(g, VOCABULARY, HIDDEN)
    adapted = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
    return Original("chatglm", config, tensors, chatglm_logits, "bins", adapted)


def chatglm_logits(config: dict, tensors: Tensors, ids: list[int]) -> torch.Tensor:
    t = {name.removeprefix("transformer."): tensor.double() for name, tensor in tensors.items()}
    eps = config["layernorm_epsilon"]
    x = t["embedding.word_embeddings.weight"][ids]
    for n in range(LAYERS):
        w = {name.removeprefix(f"encoder.layers.{n}."): tensor for name, tensor in t.items() if name.startswith(f"encoder.layers.{n}.")}
        h = rms_norm(x, w["input_layernorm.weight"], eps)
        packed = h @ w["self_attention.query_key_value.weight"].T + w["self_attention.query_key_value.bias"]
        queries, rest = packed[:, : HEADS * HEAD], packed[:, HEADS * HEAD :]
        keys, values = rest[:, : GROUPS * HEAD], rest[:, GROUPS * HEAD :]
        heads = []
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            q, c = queries[:, head * HEAD : (head + 1) * HEAD], slice(group * HEAD, (group + 1) * HEAD)
            half = HEAD // 2
            q, k = rotate_neighbours(q, 10000.0, half), rotate_neighbours(keys[:, c], 10000.0, half)
            heads.append(attend(q, k, values[:, c]))
        x = x + torch.cat(heads, -1) @ w["self_attention.dense.weight"].T
        h = rms_norm(x, w["post_attention_layernorm.weight"], eps) @ w["mlp.dense_h_to_4h.weight"].T
        x = x + (silu(h[:, :FFN]) * h[:, FFN:]) @ w["mlp.dense_4h_to_h.weight"].T
    return rms_norm(x, t["encoder.final_layernorm.weight"], eps) @ t["output_layer.weight"].T


def qwen() -> Original:
    config = {
        "model_type": "qwen",
        "architectures": ["QWenLMHeadModel"],
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * FFN,
        "kv_channels": HEAD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "seq_length": 64,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "no_bias": True,
    }
    g = torch.Generator().manual_seed(5)
    tensors = {"transformer.wte.weight": random(g, VOCABULARY, HIDDEN)}
    for n in range(LAYERS):
        layer = f"transformer.h.{n}."
        tensors |= {f"{layer}attn.c_attn.weight": random(g, 3 * HIDDEN, HIDDEN), f"{layer}attn.c_attn.bias": random(g, 3 * HIDDEN)}
        tensors[f"{layer}attn.c_proj.weight"] = random(g, HIDDEN, HIDDEN)
        tensors |= {f"{layer}mlp.w{i}.weight": random(g, FFN, HIDDEN) for i in (1, 2)}
        tensors[f"{layer}mlp.c_proj.weight"] = random(g, HIDDEN, FFN)
        tensors |= {f"{layer}ln_{i}.weight": norm_weight(g) for i in (1, 2)}
    tensors |= {"transformer.ln_f.weight": norm_weight(g), "lm_head.weight": random(g, VOCABULARY, HIDDEN)}
    return Original("qwen", config, tensors, qwen_logits, "safetensors", ("c_attn", "w1", "w2"))


def qwen_logits(config: dict, tensors: Tensors, ids: list[int]) -> torch.Tensor:
    """Within seq_length, where log-n scaling is 1 and the NTK factor is 1."""
    assert len(ids) <= config["seq_length"]
    t = {name.removeprefix("transformer."): tensor.double() for name, tensor in tensors.items()}
    eps, base = config["layer_norm_epsilon"], config["rotary_emb_base"]
    x = t["wte.weight"][ids]
    for n in range(LAYERS):
        w = {name.removeprefix(f"h.{n}."): tensor for name, tensor in t.items() if name.startswith(f"h.{n}.")}
        mixed = rms_norm(x, w["ln_1.weight"], eps) @ w["attn.c_attn.weight"].T + w["attn.c_attn.bias"]
        q, k, v = mixed[:, :HIDDEN], mixed[:, HIDDEN : 2 * HIDDEN], mixed[:, 2 * HIDDEN :]
        cut = [slice(head * HEAD, (head + 1) * HEAD) for head in range(HEADS)]
        heads = [attend(rotate_halves(q[:, c], base), rotate_halves(k[:, c], base), v[:, c]) for c in cut]
        x = x + torch.cat(heads, -1) @ w["attn.c_proj.weight"].T
        h = rms_norm(x, w["ln_2.weight"], eps)
        x = x + (h @ w["mlp.w1.weight"].T * silu(h @ w["mlp.w2.weight"].T)) @ w["mlp.c_proj.weight"].T
    return rms_norm(x, t["ln_f.weight"], eps) @ t["lm_head.weight"].T
