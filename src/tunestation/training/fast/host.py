"""What waits in host memory while a step runs: the embedding, the inputs of layers, frozen weights. Every value comes back bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from tunestation.training.fast.lanes import Lane, lane, on_host
from tunestation.training.memory import IN_FLIGHT, Choice


class HostEmbedding(nn.Module):
    """An embedding of which a batch's rows are gathered on the host.

    The table is a plain attribute: as a parameter it would be the first of the model, which tells transformers where the model is.
    """

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self.embedding_dim, self.device = embedding.embedding_dim, embedding.weight.device
        self.table = on_host(embedding.weight.shape, embedding.weight.dtype, self.device)
        self.table.copy_(embedding.weight.data)

    @property
    def weight(self) -> torch.Tensor:
        """The table [vocabulary, K], on the host."""
        return self.table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows [..., K] of `ids`, on the device of `ids`; reading `ids` waits for what the GPU was given before."""
        places = ids.cpu().view(-1)
        rows = on_host((len(places), self.embedding_dim), self.table.dtype, self.device)
        torch.index_select(self.table, 0, places, out=rows)
        return rows.to(ids.device, non_blocking=True).view(*ids.shape, self.embedding_dim)


class Inputs:
    """The inputs of layers between forward and backward pass, those of `away` in host memory.

    The last layer's backward pass comes first, so its input stays.
    """

    def __init__(self, away: range | tuple = (), down: Lane | None = None, up: Lane | None = None):
        self.away = away
        self.down, self.up = down, up
        self.places: dict[int, torch.Tensor] = {}
        self.leaving: object = None
        self.gone: dict[int, torch.Size] = {}
        self.coming: dict[int, tuple[torch.Tensor, object]] = {}

    def put(self, index: int, h: torch.Tensor) -> torch.Tensor | None:
        """Take the input h [T, K] of layer `index`: into host memory, or handed back to be kept."""
        if self.leaving is not None:
            self.down.wait(self.leaving)  # the layer between has hidden the copy; now its source may be given back
            self.leaving = None
        if index not in self.away:
            return h
        place = self._place(index, h)
        self.leaving, self.gone[index] = self.down.copy(place, h), h.shape
        return None

    def take(self, index: int, kept: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        """Layer `index`'s input again, `kept` being what `put` gave; that of the layer before begins to come. `like` has its dtype."""
        if kept is None:
            self._fetch(index, like)
            kept, ticket = self.coming.pop(index)
            self.up.wait(ticket)
        if index - 1 in self.gone:
            self._fetch(index - 1, like)
        return kept

    def _fetch(self, index: int, like: torch.Tensor) -> None:
        if index in self.coming:
            return
        h = like.new_empty(self.gone.pop(index))
        self.coming[index] = h, self.up.copy(h, self.places[index][: h.numel()].view(h.shape))

    def _place(self, index: int, h: torch.Tensor) -> torch.Tensor:
        held = self.places.get(index)
        if held is None or held.numel() < h.numel() or held.dtype != h.dtype:
            held = self.places[index] = on_host((h.numel(),), h.dtype, h.device)
        return held[: h.numel()].view(h.shape)


class Weights:
    """Frozen weights of some layers in host memory, each layer's brought into one of two places on the GPU before it runs.

    The modules' tensors are views of these places, so they hold their layer's weights only after `take`.
    """

    SLOTS = IN_FLIGHT

    def __init__(self, layers: Sequence[nn.Module], chosen: list[int], lane: Lane, device: torch.device):
        self.lane, self.device = lane, device
        self.order = {index: place for place, index in enumerate(chosen)}
        self.parts, self.host = zip(*(_leave(layers[index], device) for index in chosen), strict=True)
        largest = max(len(host) for host in self.host)
        self.slots = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(self.SLOTS)]
        self.held: list[int | None] = [None] * self.SLOTS
        self.tickets: list[object] = [None] * self.SLOTS
        for place, parts in enumerate(self.parts):
            _put(parts, _views(self.slots[place % self.SLOTS], parts))
        # evaluation of the modules themselves, as when answers are generated
        self.hooks = [
            layers[index].register_forward_pre_hook(lambda _module, _inputs, index=index: self.take(index, 1)) for index in chosen
        ]

    def take(self, index: int, ahead: int) -> None:
        """Layer `index` is about to run: its weights are there, and those of the next (`ahead` 1) or the one before (-1) begin to come.

        These take the place of weights that were used before `index`, as all that was given to the GPU so far is done first.
        """
        place = self.order.get(index)
        if place is None:
            return
        self._bring(place)
        self.lane.wait(self.tickets[place % self.SLOTS])
        if 0 <= place + ahead < len(self.parts):
            self._bring(place + ahead)

    def _bring(self, place: int) -> None:
        slot = place % self.SLOTS
        if self.held[slot] != place:
            self.tickets[slot] = self.lane.copy(self.slots[slot][: len(self.host[place])], self.host[place])
            self.held[slot] = place

    def undo(self) -> None:
        """All weights back on the GPU for good."""
        for hook in self.hooks:
            hook.remove()
        for parts, host in zip(self.parts, self.host, strict=True):
            _put(parts, [view.to(self.device, copy=True) for view in _views(host, parts)])


class Waiting:
    """What of a model waits in host memory, as a `memory.Choice` says."""

    def __init__(self, model: PreTrainedModel, choice: Choice):
        self.backbone, host = model.model, choice.host
        layers, device = self.backbone.layers, self.backbone.norm.weight.device
        up = lane(device)
        away = range(min(choice.input, len(layers) - 1)) if host.inputs else ()
        self.inputs = Inputs(away, lane(device), up)
        self.weights = Weights(layers, spread(len(layers), host.weights), up, device) if host.weights else None
        self.embedding = self.backbone.embed_tokens if host.embedding else None
        if self.embedding is not None:
            self.backbone.embed_tokens = HostEmbedding(self.embedding)
            self.embedding.weight.data = self.backbone.embed_tokens.table

    def undo(self) -> None:
        """Everything back on the GPU."""
        if self.weights is not None:
            self.weights.undo()
        if self.embedding is not None:
            self.embedding.weight.data = self.embedding.weight.to(self.backbone.norm.weight.device, copy=True)
            self.backbone.embed_tokens = self.embedding


def spread(layers: int, count: int) -> list[int]:
    """`count` of `layers` at equal distances, so that each has the longest time to come."""
    return [index * layers // count for index in range(count)]


Part = tuple[torch.Tensor, Callable[[torch.Tensor], None]]
"""Shape and dtype of a frozen tensor (on the meta device), and what puts a tensor in its place."""


def _leave(layer: nn.Module, device: torch.device) -> tuple[list[Part], torch.Tensor]:
    """Move the frozen matrices of a layer to host memory [bytes]; what they took on `device` is free at once."""
    found = _frozen(layer)
    parts = [(tensor.to("meta"), put) for tensor, put in found]
    host = on_host((sum(_aligned(tensor) for tensor, _ in parts),), torch.uint8, device)
    for (tensor, _), view in zip(found, _views(host, parts), strict=True):
        view.copy_(tensor)
    _put(parts, [torch.empty(0, dtype=tensor.dtype, device=device) for tensor, _ in parts])
    return parts, host


def _frozen(layer: nn.Module) -> list[Part]:
    """The frozen matrices of a decoder layer: 4-bit codes with their scales, or plain weights."""
    found: list[Part] = []
    for module in layer.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad:
            found.append((module.weight.data, partial(setattr, module.weight, "data")))
            state = getattr(module.weight, "quant_state", None)
            owners = [] if state is None else [state, state.state2] if state.nested else [state]
            found += [(owner.absmax, partial(setattr, owner, "absmax")) for owner in owners]
    return found


def _put(parts: list[Part], tensors: list[torch.Tensor]) -> None:
    for (_, put), tensor in zip(parts, tensors, strict=True):
        put(tensor)


def _aligned(tensor: torch.Tensor) -> int:
    """Bytes up to where the next tensor may start: a multiple of 512, as torch's own allocations."""
    return -(-tensor.nbytes // 512) * 512


def _views(flat: torch.Tensor, parts: list[Part]) -> list[torch.Tensor]:
    """Views of `flat` [bytes] with the shapes and dtypes of the parts."""
    found, start = [], 0
    for tensor, _ in parts:
        found.append(flat[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        start += _aligned(tensor)
    return found
