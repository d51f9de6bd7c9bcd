"""Baichuan-13B's architecture under Llama's names: no rotation, instead a bias that grows with distance (ALiBi).

Ofir Press, Noah Smith, Mike Lewis: Train Short, Test Long (2022), section 3. Importing this module makes transformers'
Auto classes know it. Other programs do not: `native.convert.export_back` writes such a model in the family's own layout.
"""

from __future__ import annotations

import math

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Cache, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast

from tunestation.models.native.baichuan import ALIBI


class AlibiConfig(LlamaConfig):
    """A Llama's configuration; its rope is not used."""

    model_type = ALIBI


class NoRotation(torch.nn.Module):
    """In the place of Llama's rotary embedding: the angle 0 everywhere."""

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [batch, tokens, 1] in the dtype of `x`; one column serves every dimension of a head."""
        zero = torch.zeros(*position_ids.shape, 1, dtype=x.dtype, device=x.device)
        return zero + 1, zero


class AlibiModel(LlamaModel):
    """Llama's layers with ALiBi in the place of rotary positions."""

    def __init__(self, config: AlibiConfig):
        super().__init__(config)
        self.rotary_emb = NoRotation()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> BaseModelOutputWithPast:
        """As LlamaModel. `attention_mask` is [batch, keys] or None; documents of a pack are told by `position_ids` that begin anew."""
        embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        mask = create_causal_mask(self.config, embeds, attention_mask, past_key_values, position_ids, allow_is_causal_skip=False)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        bias = distance_bias(self.config.num_attention_heads, past, embeds.shape[1], mask.shape[-1], embeds.device)
        return super().forward(
            attention_mask=_with_mask(bias, mask, embeds.dtype),
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=embeds,
            **kwargs,
        )


class AlibiForCausalLM(LlamaForCausalLM):
    """AlibiModel with a head. Attention runs through `sdpa` or `eager`, which take a bias for each head."""

    config_class = AlibiConfig
    _supports_flash_attn = False
    _supports_flex_attn = False
    _supports_attention_backend = False  # an attention of someone else's would leave the bias out

    def __init__(self, config: AlibiConfig):
        super().__init__(config)
        self.model = AlibiModel(config)
        self.post_init()


def slopes(heads: int) -> list[float]:
    """2^(-8 i / n) for i = 1..n where n is a power of two; for other counts every second slope of 2 n follows."""
    power = 2 ** math.floor(math.log2(heads))
    return [2 ** (-8 * i / power) for i in range(1, power + 1)] + [2 ** (-4 * i / power) for i in range(1, 2 * (heads - power), 2)]


def distance_bias(heads: int, past: int, queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """[heads, queries, keys] float32: minus slope times (query's place - key's place); the first query is at `past`.

    Only differences count, so places may be those in the row: padding on the left and earlier documents change nothing.
    """
    distance = torch.arange(past, past + queries, device=device)[:, None] - torch.arange(keys, device=device)
    return torch.tensor(slopes(heads), device=device)[:, None, None] * -distance


def _with_mask(bias: torch.Tensor, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[batch, heads, queries, keys]: `bias` where `mask` (true, or 0, is seen) allows it, else the least number of `dtype`."""
    seen = mask if mask.dtype == torch.bool else mask == 0
    return torch.where(seen, bias.to(dtype), torch.finfo(dtype).min)


AutoConfig.register(ALIBI, AlibiConfig, exist_ok=True)
AutoModelForCausalLM.register(AlibiConfig, AlibiForCausalLM, exist_ok=True)
