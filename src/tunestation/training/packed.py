"""Packs under transformers' own step: each document attends to itself alone, without a mask as large as the square of a pack.

The lengths of documents take the mask's place on their way through the model: transformers hands a ready mask of four dimensions on as it
is, to every layer, and again to those that are computed again. Everything else, as generating, finds SDPA and its masks as before.
"""

from __future__ import annotations

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from tunestation.training.batches import lay
from tunestation.training.fast.attention import Documents, attend

NAME = "documents"


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, T, size], key and value [1, key-value heads, T, size] -> [1, T, heads, size].

    `attention_mask` tells where documents end, int32 [1, 1, longest, documents + 1]; or is anything that SDPA takes.
    """
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    found = Documents(attention_mask[0, 0, 0], attention_mask.shape[2], query.shape[2])
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend(q, k, v, found, query.shape[3] ** -0.5 if scaling is None else scaling)[None], None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def documents(rows: list[dict]) -> dict[str, torch.Tensor | int]:
    """Rows one behind the other, without padding, as `batches.lay` lays them; of `ends` and `longest` `batches.placed` makes the mask."""
    laid = lay(rows)
    return {name: laid[name] for name in ("input_ids", "labels", "position_ids", "longest")} | {"ends": laid["cu_seqlens"]}


def packable(model: PreTrainedModel, longest: int) -> bool:
    """Whether `model`'s attention is plain causal attention for documents of up to `longest` tokens."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    plain = not (getattr(config, "attention_dropout", 0) or getattr(config, "v_head_dim", None) or (window and window < longest))
    return plain and model._supports_sdpa and model._supports_attention_backend


def pack(model: PreTrainedModel) -> None:
    """Let a `packable` model take what `documents` makes."""
    model.set_attn_implementation(NAME)


def packs(model: PreTrainedModel) -> bool:
    """Whether `model` does."""
    return model.config._attn_implementation == NAME
