"""Conversations that are answered together: one forward pass gives each of them its next token.

Rows come and go at every step (iteration-level scheduling, Yu et al., Orca, OSDI 2022). The cache is one tensor a layer,
(rows, heads, width, head_dim), padded on the left, so that the newest token of every row is in the last column.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch.nn.functional import pad
from transformers import DynamicCache


class Batch:
    """The keys and values of the conversations being answered, in the order they joined. Call it in inference mode."""

    def __init__(self, model: torch.nn.Module):
        self._model = model
        # Without it a long prompt costs prompt x vocabulary logits, of which one row is used.
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        self._cache: DynamicCache | None = None
        self._mask = torch.empty(0, 0, dtype=torch.long)

    def join(self, conversations: Sequence[list[int]]) -> torch.Tensor:
        """Read whole conversations and add them behind the others; logits (new rows, vocabulary) of what comes next."""
        width = max(map(len, conversations))
        ids = torch.tensor([[ids[0]] * (width - len(ids)) + ids for ids in conversations], device=self._model.device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in conversations], device=self._model.device)
        cache = DynamicCache()  # without a config every layer keeps all positions; windows are in the mask
        logits = self._forward(ids, mask, cache)
        self._add(cache, mask)
        return logits

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each conversation; logits (rows, vocabulary) of what comes next."""
        self._mask = pad(self._mask, (0, 1), value=1)
        return self._forward(torch.tensor(tokens, device=self._model.device)[:, None], self._mask, self._cache)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all conversations but `rows`, and the columns that only the dropped ones used."""
        if not rows:
            self._cache, self._mask = None, self._mask[:0, :0]
            return
        index = torch.tensor(rows, device=self._mask.device)
        mask = self._mask[index]
        first = int(mask.argmax(dim=1).min())
        self._mask = mask[:, first:]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[index, :, first:], layer.values[index, :, first:]

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """Float32 logits (rows, vocabulary) for the token after the last column of `ids` (rows, new); grows `cache`."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, **self._last_only
        )
        return out.logits[:, -1].float()

    def _add(self, cache: DynamicCache, mask: torch.Tensor) -> None:
        if self._cache is None:
            self._cache, self._mask = cache, mask
            return
        width = max(self._mask.shape[1], mask.shape[1])
        for old, new in zip(self._cache.layers, cache.layers, strict=True):
            old.keys = torch.cat([_widened(old.keys, width), _widened(new.keys, width)])
            old.values = torch.cat([_widened(old.values, width), _widened(new.values, width)])
        self._mask = torch.cat([pad(one, (width - one.shape[1], 0)) for one in (self._mask, mask)])


def _widened(states: torch.Tensor, width: int) -> torch.Tensor:
    return pad(states, (0, 0, width - states.shape[2], 0))
