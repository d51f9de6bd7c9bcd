"""The adapters of a decoder layer: where they and their gradients lie, and as one weight that learns.

A layer has up to seven A and seven B. As weights of their own each of them takes calls of the host in autograd, in the optimizer and in
DeepSpeed (a hook, copies, a norm), together more than a GPU needs for a short micro-batch. Joined they are views of one weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import nn

from tunestation.training.checkpoints import JOINED
from tunestation.training.fast.weights import Filling


class Part(NamedTuple):
    """Adapters, or their gradients, of one projection."""

    a: torch.Tensor
    """[R, K]: those of all members, one below the other."""
    b: list[torch.Tensor]
    """[N, r] of each adapted member."""


class Layout:
    """Where A and B of a layer lie in one row of numbers: all A, projection by projection, then each B."""

    def __init__(self, projections: Sequence[Filling]):
        self.members = [member for each in projections for member in each.members if member.lora]
        self.ranks = [[rank for rank in each.ranks if rank] for each in projections]
        """Of each adapted member of each projection."""
        all_a = [(sum(each.ranks), each.columns) for each in projections]
        self.shapes = [*all_a, *(pair for each in projections for pair in zip(each.sizes, each.ranks, strict=True) if pair[1])]
        self.sizes = [rows * columns for rows, columns in self.shapes]
        self.numbers = sum(self.sizes)
        """How many there are."""

    @property
    def weights(self) -> list[nn.Parameter]:
        """A, B of each adapted member, in order."""
        return [weight for member in self.members for weight in member.adapter]

    def parts(self, flat: torch.Tensor) -> list[Part]:
        """Views of `flat` [numbers], for each projection."""
        found = [piece.view(shape) for piece, shape in zip(flat.split(self.sizes), self.shapes, strict=True)]
        every_b = iter(found[len(self.ranks) :])
        return [Part(a, list(islice(every_b, len(ranks)))) for a, ranks in zip(found, self.ranks, strict=False)]

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Views of `flat` [numbers], in the order of `weights`."""
        parts = zip(self.parts(flat), self.ranks, strict=True)
        return [view for part, ranks in parts for pair in zip(part.a.split(ranks), part.b, strict=True) for view in pair]

    @property
    def joinable(self) -> bool:
        """Whether one weight can hold all of them."""
        return len({(weight.dtype, weight.device) for weight in self.weights}) == 1


class Joined:
    """The adapters of the decoder layer `module` as one weight of it; A and B themselves are views, frozen, and saved as ever."""

    def __init__(self, module: nn.Module, layout: Layout):
        self.module, self.layout = module, layout
        flat = layout.weights[0].data.new_empty(layout.numbers)
        for view, weight in zip(layout.views(flat), layout.weights, strict=True):
            view.copy_(weight.data)
            weight.requires_grad_(False)
        module.register_parameter(JOINED, nn.Parameter(flat))
        module.register_state_dict_pre_hook(lambda *_: self.refresh())
        module.register_load_state_dict_pre_hook(lambda *_: self.refresh())
        self.refresh()

    @property
    def weight(self) -> nn.Parameter:
        """[numbers], as `layout` lays them."""
        return self.module._parameters[JOINED]

    def refresh(self) -> None:
        """A and B are views of the weight again: DeepSpeed converts and moves all weights of a model, each by itself."""
        flat = self.weight
        if self.layout.members[0].adapter[0].data_ptr() != flat.data_ptr():  # one that is kept shares no address with another
            for weight, view in zip(self.layout.weights, self.layout.views(flat.detach()), strict=True):
                weight.data = view


def joined(model: nn.Module) -> bool:
    """Whether adapters of `model` are joined: optimizers then have one weight a layer, and so have checkpoints."""
    return any(name.endswith(JOINED) for name, _ in model.named_parameters())
