"""What waits in host memory while a step runs: the embedding, the inputs of layers, frozen weights. Every value comes back bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from tunestation.training.fast.lanes import Lane, lane, on_host
from tunestation.training.memory import IN_FLIGHT, Choice

SCALES = "absmax"
"""What bitsandbytes calls the scales of 4-bit codes."""


class Part(NamedTuple):
    """A tensor, and the attribute that holds it."""

    tensor: torch.Tensor
    owner: object
    name: str

    def put(self, tensor: torch.Tensor) -> None:
        """Another one takes its place."""
        setattr(self.owner, self.name, tensor)


class HostEmbedding(nn.Module):
    """An embedding of which a batch's rows are gathered on the host.

    The table is a plain attribute: as a parameter it would be the first of the model, which tells transformers where the model is.
    """

    def __init__(self, embedding: nn.Embedding, device: torch.device):
        super().__init__()
        self.embedding_dim, self.device = embedding.embedding_dim, device
        self.table = on_host(embedding.weight.shape, embedding.weight.dtype, self.device)
        self.table.copy_(embedding.weight.data)
        self.finish = None if type(embedding) is nn.Embedding else _Finish(embedding, device)
        """What the embedding does with its rows, such as Gemma's scale."""

    @property
    def weight(self) -> torch.Tensor:
        """The table [vocabulary, K], on the host."""
        return self.table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows [..., K] of `ids`, on the device of `ids`; reading `ids` waits for what the GPU was given before."""
        return self.gather(ids.cpu(), ids.device)

    def gather(self, ids: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Rows [..., K] of `ids`, which are on the host, to `device`; nothing waits."""
        rows = on_host((ids.numel(), self.embedding_dim), self.table.dtype, self.device)
        torch.index_select(self.table, 0, ids.reshape(-1), out=rows)
        there = rows.to(device, non_blocking=True)
        return (self.finish(there) if self.finish else there).view(*ids.shape, self.embedding_dim)


class _Finish:
    """The forward pass of an `embedding` over rows that were gathered already, as over a table that has no others."""

    def __init__(self, embedding: nn.Embedding, device: torch.device):
        self.embedding = copy(embedding)
        self.embedding.padding_idx = None  # it may lie behind the rows of a short batch, and matters to gradients alone
        self.buffers = {name: buffer.to(device) for name, buffer in embedding.named_buffers()}

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return functional_call(self.embedding, {"weight": rows, **self.buffers}, torch.arange(len(rows), device=rows.device))


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

    The modules' tensors are views of these places, so they hold their layer's weights only after `take`, and while a state dict is made:
    bitsandbytes puts scales into it, which DeepSpeed does not leave out with the frozen weights.
    """

    SLOTS = IN_FLIGHT

    def __init__(self, layers: Sequence[nn.Module], chosen: list[int], lane: Lane, device: torch.device):
        self.lane, self.device = lane, device
        self.order = {index: place for place, index in enumerate(chosen)}
        self.parts, self.host = zip(*(_leave(layers[index], device) for index in chosen), strict=True)  # parts without values
        largest = max(len(host) for host in self.host)
        self.slots = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(self.SLOTS)]
        self.held: list[int | None] = [None] * self.SLOTS
        self.tickets: list[object] = [None] * self.SLOTS
        for index in chosen:
            self._hide(index)
        self.hooks = [hook for index in chosen for hook in self._hooks(layers[index], index)]

    def _hooks(self, layer: nn.Module, index: int) -> tuple[RemovableHandle, ...]:
        """For evaluation of the modules themselves, as when answers are generated; and for state dicts."""
        return (
            layer.register_forward_pre_hook(lambda *_: self.take(index, 1)),
            layer.register_state_dict_pre_hook(lambda *_: self._show(index)),
            layer.register_state_dict_post_hook(lambda *_: self._hide(index)),
        )

    def _show(self, index: int) -> None:
        """The layer's own weights, in host memory; copies of their scales, which get saved as if nothing waited."""
        parts, host = self.parts[self.order[index]], self.host[self.order[index]]
        for part, view in zip(parts, _views(host, parts), strict=True):
            part.put(view.to(self.device, copy=True) if part.name == SCALES else view)

    def _hide(self, index: int) -> None:
        place = self.order[index]
        _put(self.parts[place], _views(self.slots[place % self.SLOTS], self.parts[place]))

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

    def release(self) -> None:
        """The modules hold their own tensors again, in host memory; the places on the GPU are given back."""
        for hook in self.hooks:
            hook.remove()
        for parts, host in zip(self.parts, self.host, strict=True):
            _put(parts, _views(host, parts))
        self.slots, self.tickets = [], []


class Waiting:
    """What of a model waits in host memory, as a `memory.Choice` says. Weights that lie there already do not go through the GPU.

    `device` is where steps will run; None where the model is by the time of a choice.
    """

    def __init__(self, model: PreTrainedModel, choice: Choice, device: torch.device | None = None):
        self.backbone, self.device = model.model, device
        self.weights: Weights | None = None
        self.embedding: nn.Embedding | None = None
        self.become(choice)

    def become(self, choice: Choice) -> None:
        """From now on as `choice` says: what still waits is left where it is, and what leaves the GPU goes before others come."""
        host, layers = choice.host, self.backbone.layers
        device = self.device or self.backbone.norm.weight.device
        up = self.weights.lane if self.weights else lane(device)
        self._embedding(host.embedding, device)
        self._weights(spread(len(layers), host.weights), up, device)
        self.inputs = Inputs(range(min(choice.input, len(layers) - 1)) if host.inputs else (), lane(device), up)

    def _embedding(self, waits: bool, device: torch.device) -> None:
        if waits and self.embedding is None:
            self.embedding = self.backbone.embed_tokens
            self.backbone.embed_tokens = HostEmbedding(self.embedding, device)
            self.embedding.weight.data = self.backbone.embed_tokens.table
        elif self.embedding is not None and not waits:
            self.embedding.weight.data = self.embedding.weight.to(device, copy=True)
            self.backbone.embed_tokens, self.embedding = self.embedding, None

    def _weights(self, chosen: list[int], up: Lane, device: torch.device) -> None:
        before = list(self.weights.order) if self.weights else []
        if chosen == before:
            return
        if self.weights:
            self.weights.release()
        self.weights = Weights(self.backbone.layers, chosen, up, device) if chosen else None
        for index in sorted(set(before) - set(chosen)):
            for part in _frozen(self.backbone.layers[index]):
                part.put(part.tensor.to(device, copy=True))


def spread(layers: int, count: int) -> list[int]:
    """`count` of `layers` at equal distances, so that each has the longest time to come."""
    return [index * layers // count for index in range(count)]


def _leave(layer: nn.Module, device: torch.device) -> tuple[list[Part], torch.Tensor]:
    """Move the frozen matrices of a layer to host memory [bytes]; what they took on `device` is free at once."""
    found = _frozen(layer)
    parts = [part._replace(tensor=part.tensor.to("meta")) for part in found]
    host = on_host((sum(_aligned(part.tensor) for part in parts),), torch.uint8, device)
    for part, view in zip(found, _views(host, parts), strict=True):
        view.copy_(part.tensor)
    _put(parts, [torch.empty(0, dtype=part.tensor.dtype, device=device) for part in parts])
    return parts, host


def _frozen(layer: nn.Module) -> list[Part]:
    """The frozen matrices of a decoder layer: 4-bit codes with scales, or plain weights. Adapters that are joined only look frozen."""
    found: list[Part] = []
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad and "lora_" not in name:
            found += tensors(module.weight)
    return found


def tensors(weight: nn.Parameter) -> list[Part]:
    """What of a weight is large: itself, and the scales of 4-bit codes."""
    state = getattr(weight, "quant_state", None)
    owners = [] if state is None else [state, state.state2] if state.nested else [state]
    return [Part(weight.data, weight, "data"), *(Part(owner.absmax, owner, SCALES) for owner in owners)]


def _put(parts: list[Part], found: list[torch.Tensor]) -> None:
    for part, tensor in zip(parts, found, strict=True):
        part.put(tensor)


def _aligned(tensor: torch.Tensor) -> int:
    """Bytes up to where the next tensor may start: a multiple of 512, as torch's own allocations."""
    return -(-tensor.nbytes // 512) * 512


def _views(flat: torch.Tensor, parts: list[Part]) -> list[torch.Tensor]:
    """Views of `flat` [bytes] with the shapes and dtypes of the parts."""
    found, start = [], 0
    for tensor, *_ in parts:
        found.append(flat[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        start += _aligned(tensor)
    return found
