"""4-bit weights of layers that wait in host memory: each is quantised on the GPU as it arrives, and goes back before the next one comes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from bitsandbytes.nn import Linear4bit
from transformers import PreTrainedModel
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers import auto
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from tunestation.training.fast.host import spread, tensors

KIND = "bitsandbytes_4bit"
LAYERS = "model.layers."


@contextmanager
def through(device: torch.device, waiting: int) -> Iterator[None]:
    """A model that transformers loads on the host in here has its 4-bit weights on `device`, but those of `waiting` layers.

    Quantised there, they are bit by bit what loading onto `device` gives. transformers itself refuses to quantise a model that lies on
    both, and quantises on the CPU what it loads there.
    """
    stage = Stage(device)

    class Quantizer(Bnb4BitHfQuantizer):
        def get_quantize_ops(self) -> Bnb4bitQuantize:
            return _Quantise(self, stage, waiting)

    theirs = auto.AUTO_QUANTIZER_MAPPING[KIND]
    auto.AUTO_QUANTIZER_MAPPING[KIND] = Quantizer
    try:
        yield
    finally:
        auto.AUTO_QUANTIZER_MAPPING[KIND] = theirs
        stage.room = None


class Stage:
    """Room on a device for one weight after the other: room made for each would leave gaps among 4-bit weights, of gigabytes for 7B."""

    def __init__(self, device: torch.device):
        self.device = device
        self.room: torch.Tensor | None = None

    def hold(self, weight: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
        """A copy of a linear layer's `weight`, until the next one's."""
        if self.room is None or self.room.dtype != weight.dtype or self.room.numel() < weight.numel():
            sizes = [module.in_features * module.out_features for module in model.modules() if isinstance(module, Linear4bit)]
            self.room = torch.empty(max(weight.numel(), *sizes), dtype=weight.dtype, device=self.device)
        return self.room[: weight.numel()].view(weight.shape).copy_(weight)


class _Quantise(Bnb4bitQuantize):
    """transformers' conversion of one weight, on a device of its own."""

    def __init__(self, quantizer: Bnb4BitHfQuantizer, stage: Stage, waiting: int):
        super().__init__(quantizer)
        self.stage, self.waiting = stage, waiting

    def convert(
        self, input_dict: dict, full_layer_name: str | None = None, model: PreTrainedModel | None = None, **options: object
    ) -> dict[str, torch.Tensor]:
        there = {name: [self.stage.hold(_one(value), model)] for name, value in input_dict.items()}
        found = super().convert(there, full_layer_name=full_layer_name, model=model, **options)
        for name, weight in found.items():
            if _layer(name) in spread(model.config.num_hidden_layers, self.waiting):
                for part in tensors(weight):
                    part.put(part.tensor.to("cpu", copy=True))
        return found


def _one(value: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    return value[0] if isinstance(value, list) else value


def _layer(name: str) -> int | None:
    """The decoder layer of a weight; None for one of no layer."""
    return int(name.removeprefix(LAYERS).partition(".")[0]) if name.startswith(LAYERS) else None
