"""Tiny random models in the layout and file format in which each family was published, and what the family computes.

The reference forward is written from the published equations, one sequence at a time, in float64, without transformers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
VOCABULARY, HIDDEN, HEAD, LAYERS, FFN = 600, 32, 8, 2, 48
HEADS = HIDDEN // HEAD
GROUPS = 2


@dataclass(frozen=True)
class Original:
    """One family's tiny model."""

    name: str
    config: dict
    tensors: Tensors
    logits: Callable[[dict, Tensors, list[int]], torch.Tensor]
    """(config, tensors, ids) -> [len(ids), vocabulary] float64."""
    files: str
    """safetensors, bin or bins (two shards with an index)."""
    adapted: tuple[str, ...] = ()
    """Modules that an adapter of the family's users names."""

    def write(self, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
        """Configuration and weights as published; the tokenizer's file is the caller's."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config | {"auto_map": {"AutoModelForCausalLM": "modeling_x.Model"}}))
        tensors = {name: tensor.to(dtype) for name, tensor in self.tensors.items()}
        if self.files == "safetensors":
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        elif self.files == "bin":
            torch.save(tensors, folder / "pytorch_model.bin")
        else:
            self._write_shards(folder, tensors)
        return folder

    def _write_shards(self, folder: Path, tensors: Tensors) -> None:
        names = list(tensors)
        where = {}
        for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
            file = f"pytorch_model-0000{number}-of-00002.bin"
            torch.save({name: tensors[name] for name in part}, folder / file)
            where |= dict.fromkeys(part, file)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))


def random(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator) * 0.15


def norm_weight(generator: torch.Generator) -> torch.Tensor:
    return 1 + torch.randn(HIDDEN, generator=generator) * 0.1


# ---- equations that families share ----


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def angles(positions: int, dim: int, base: float) -> torch.Tensor:
    """[positions, dim / 2]: position times base^(-2 i / dim)."""
    return torch.arange(positions, dtype=torch.float64)[:, None] * base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def rotate_halves(x: torch.Tensor, base: float) -> torch.Tensor:
    """x [tokens, dim]: dimension i turns together with i + dim / 2."""
    angle = angles(*x.shape, base)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()), -1)


def rotate_neighbours(x: torch.Tensor, base: float, dim: int) -> torch.Tensor:
    """x [tokens, head]: of the first `dim` dimensions each even one turns together with its odd neighbour."""
    angle, turned = angles(len(x), dim, base), x.clone()
    even, odd = x[:, 0:dim:2], x[:, 1:dim:2]
    turned[:, 0:dim:2] = even * angle.cos() - odd * angle.sin()
    turned[:, 1:dim:2] = odd * angle.cos() + even * angle.sin()
    return turned


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slope: float = 0.0) -> torch.Tensor:
    """One head, causal: [tokens, head] each. `slope`: ALiBi."""
    scores = q @ k.T / math.sqrt(q.shape[-1])
    place = torch.arange(len(q), dtype=torch.float64)
    scores = scores + slope * (place[None, :] - place[:, None])
    scores = scores.masked_fill(place[None, :] > place[:, None], -torch.inf)
    return scores.softmax(-1) @ v


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + (-x).exp())


# ---- InternLM2 ----


def internlm2(biased: bool = False, scaling: dict | None = None, positions: int = 64) -> Original:
    config = {
        "model_type": "internlm2",
        "architectures": ["InternLM2ForCausalLM"],
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000,
        "rope_scaling": scaling,
        "bias": biased,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    g = torch.Generator().manual_seed(2)
    tensors = {"model.tok_embeddings.weight": random(g, VOCABULARY, HIDDEN)}
    for n in range(LAYERS):
        layer = f"model.layers.{n}."
        tensors[f"{layer}attention.wqkv.weight"] = random(g, (HEADS + 2 * GROUPS) * HEAD, HIDDEN)
        tensors[f"{layer}attention.wo.weight"] = random(g, HIDDEN, HIDDEN)
        if biased:
            tensors[f"{layer}attention.wqkv.bias"] = random(g, (HEADS + 2 * GROUPS) * HEAD)
            tensors[f"{layer}attention.wo.bias"] = random(g, HIDDEN)
        tensors |= {f"{layer}feed_forward.w{i}.weight": random(g, FFN, HIDDEN) for i in (1, 3)}
        tensors[f"{layer}feed_forward.w2.weight"] = random(g, HIDDEN, FFN)
        tensors |= {f"{layer}{name}_norm.weight": norm_weight(g) for name in ("attention", "ffn")}
    tensors |= {"model.norm.weight": norm_weight(g), "output.weight": random(g, VOCABULARY, HIDDEN)}
    return Original("internlm2", config, tensors, internlm2_logits, "safetensors", ("wqkv", "wo", "w1", "w2", "w3"))


def internlm2_base(config: dict, length: int) -> float:
    """Dynamic NTK: past the trained length the base grows with the sequence."""
    theta, scaling, trained = config["rope_theta"], config["rope_scaling"], config["max_position_embeddings"]
    if not scaling or length <= trained:
        return theta
    factor = scaling["factor"]
    return theta * (factor * length / trained - (factor - 1)) ** (HEAD / (HEAD - 2))


def internlm2_logits(config: dict, tensors: Tensors, ids: list[int]) -> torch.Tensor:
    t = {name: tensor.double() for name, tensor in tensors.items()}
    eps, base = config["rms_norm_eps"], internlm2_base(config, len(ids))
    x = t["model.tok_embeddings.weight"][ids]
    per_group = HEADS // GROUPS
    for n in range(LAYERS):
        w = {name.removeprefix(f"model.layers.{n}."): tensor for name, tensor in t.items() if name.startswith(f"model.layers.{n}.")}
        h = rms_norm(x, w["attention_norm.weight"], eps)
        qkv = h @ w["attention.wqkv.weight"].T + w.get("attention.wqkv.bias", 0)
        heads = []
        for group in range(GROUPS):
            slot = [qkv[:, (group * (per_group + 2) + i) * HEAD :][:, :HEAD] for i in range(per_group + 2)]
            k, v = rotate_halves(slot[-2], base), slot[-1]
            heads += [attend(rotate_halves(q, base), k, v) for q in slot[:-2]]
        x = x + torch.cat(heads, -1) @ w["attention.wo.weight"].T + w.get("attention.wo.bias", 0)
        h = rms_norm(x, w["ffn_norm.weight"], eps)
        gate, up = h @ w["feed_forward.w1.weight"].T, h @ w["feed_forward.w3.weight"].T
        x = x + (silu(gate) * up) @ w["feed_forward.w2.weight"].T
    return rms_norm(x, t["model.norm.weight"], eps) @ t["output.weight"].T


# ---- InternLM of the first generation ----


def internlm(biased: bool = True, rotary: str = "dynamic") -> Original:
    config = {
        "model_type": "internlm",
        "architectures": ["InternLMForCausalLM"],
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "bias": biased,
        "rotary": {"base": 10000, "type": rotary},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    g = torch.Generator().manual_seed(1)
    tensors = {"model.embed_tokens.weight": random(g, VOCABULARY, HIDDEN)}
    for n in range(LAYERS):
        layer = f"model.layers.{n}."
        for name in "qkvo":
            tensors[f"{layer}self_attn.{name}_proj.weight"] = random(g, HIDDEN, HIDDEN)
            if biased:
                tensors[f"{layer}self_attn.{name}_proj.bias"] = random(g, HIDDEN)
        tensors[f"{layer}self_attn.rotary_emb.inv_freq"] = torch.ones(HEAD // 2)
        tensors |= {f"{layer}mlp.{name}_proj.weight": random(g, FFN, HIDDEN) for name in ("gate", "up")}
        tensors[f"{layer}mlp.down_proj.weight"] = random(g, HIDDEN, FFN)
        tensors |= {f"{layer}{name}_layernorm.weight": norm_weight(g) for name in ("input", "post_attention")}
    tensors |= {"model.norm.weight": norm_weight(g), "lm_head.weight": random(g, VOCABULARY, HIDDEN)}
    return Original("internlm", config, tensors, internlm_logits, "bins", ("q_proj", "v_proj", "down_proj"))


def internlm_logits(config: dict, tensors: Tensors, ids: list[int]) -> torch.Tensor:
    t = {name: tensor.double() for name, tensor in tensors.items()}
    eps, base = config["rms_norm_eps"], config["rotary"]["base"]
    x = t["model.embed_tokens.weight"][ids]
    for n in range(LAYERS):
        w = {name.removeprefix(f"model.layers.{n}."): tensor for name, tensor in t.items() if name.startswith(f"model.layers.{n}.")}
        h = rms_norm(x, w["input_layernorm.weight"], eps)
        q, k, v = (h @ w[f"self_attn.{name}_proj.weight"].T + w.get(f"self_attn.{name}_proj.bias", 0) for name in "qkv")
        cut = [slice(head * HEAD, (head + 1) * HEAD) for head in range(HEADS)]
        heads = [attend(rotate_halves(q[:, c], base), rotate_halves(k[:, c], base), v[:, c]) for c in cut]
        x = x + torch.cat(heads, -1) @ w["self_attn.o_proj.weight"].T + w.get("self_attn.o_proj.bias", 0)
        h = rms_norm(x, w["post_attention_layernorm.weight"], eps)
        x = x + (silu(h @ w["mlp.gate_proj.weight"].T) * (h @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
    return rms_norm(x, t["model.norm.weight"], eps) @ t["lm_head.weight"].T
