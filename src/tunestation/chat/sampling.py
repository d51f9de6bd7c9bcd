"""Draws the next token of many answers at once, each by its own settings and its own random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import RepetitionPenaltyLogitsProcessor

from tunestation.recipe.schema import Generation

COLDEST = 1e-5
"""Temperatures below it take the likeliest token: logits divided by much less overflow, and one such row would fail the others' step."""


@dataclass(frozen=True)
class Sampler:
    """How one answer is drawn. Its random numbers come from the CPU, so that a seed means the same on every device."""

    generation: Generation
    random: torch.Generator


def sampler(generation: Generation, seed: int | None) -> Sampler:
    """A Sampler that repeats itself for the same `seed`; the global random state is neither read nor changed."""
    random = torch.Generator()
    if seed is None:
        random.seed()
    else:
        random.manual_seed(seed)
    return Sampler(generation, random)


def choose(logits: torch.Tensor, samplers: Sequence[Sampler], seen: Sequence[list[int]]) -> list[int]:
    """The next token of each row of `logits` (rows, vocabulary), float32; `seen` are the ids so far, for the repetition penalty."""
    logits = _penalised(logits, samplers, seen)
    chosen = logits.argmax(dim=-1)
    hot = [row for row, one in enumerate(samplers) if one.generation.temperature >= COLDEST]
    if hot:
        chosen[hot] = _draw(logits[hot], [samplers[row] for row in hot])
    return chosen.tolist()


def _penalised(logits: torch.Tensor, samplers: Sequence[Sampler], seen: Sequence[list[int]]) -> torch.Tensor:
    for row, one in enumerate(samplers):
        penalty = one.generation.repetition_penalty
        if penalty != 1:
            ids = torch.tensor([seen[row]], device=logits.device)
            logits[row] = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits[row : row + 1])[0]
    return logits


def _draw(logits: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """One token a row, by inverse transform sampling: the first whose cumulated probability exceeds a uniform number."""
    probabilities, tokens = distribution(logits, [one.generation for one in samplers])
    uniform = torch.cat([torch.rand(1, generator=one.random) for one in samplers]).to(logits.device)
    cumulated = probabilities.cumsum(dim=-1)
    at = torch.searchsorted(cumulated, uniform[:, None] * cumulated[:, -1:], right=True)
    last = (probabilities > 0).sum(dim=-1, keepdim=True) - 1
    return tokens.gather(1, at.minimum(last))[:, 0]


def distribution(logits: torch.Tensor, settings: Sequence[Generation]) -> tuple[torch.Tensor, torch.Tensor]:
    """(probabilities, tokens) of each row (rows, considered), likeliest first, after temperature, top-k and top-p.

    Top-p keeps the smallest set of tokens with at least this share (Holtzman et al., arXiv:1904.09751, section 3.1).
    """

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, device=logits.device)[:, None]

    size = logits.shape[-1]
    limits = [min(one.top_k or size, size) for one in settings]
    scores, tokens = (logits / column([one.temperature for one in settings])).topk(max(limits), dim=-1)
    rank = torch.arange(scores.shape[-1], device=logits.device)
    probabilities = scores.masked_fill(rank >= column(limits), float("-inf")).softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    # A share of 1 keeps all: the rounded sum may reach 1 before the last token does.
    share = column([one.top_p if one.top_p < 1 else 2.0 for one in settings])
    kept = probabilities.masked_fill((before >= share) & (rank > 0), 0.0)
    return kept / kept.sum(dim=-1, keepdim=True), tokens
