"""The fast step over a whole model: which models it knows, and the forward pass that takes their modules' place in training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.metadata import version

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from tunestation.training import memory
from tunestation.training.fast import flash, gated, nf4, quack_loss
from tunestation.training.fast.adapters import Joined
from tunestation.training.fast.attention import ByTorch, Documents
from tunestation.training.fast.beside import Beside
from tunestation.training.fast.block import Block, Norm, unknown
from tunestation.training.fast.flash import Flash
from tunestation.training.fast.float8 import Float8Linear, Float8Projection
from tunestation.training.fast.head import summed_loss
from tunestation.training.fast.host import HostEmbedding, Inputs, Waiting
from tunestation.training.fast.kept import Keep
from tunestation.training.fast.layer import Layer
from tunestation.training.fast.projection import Projection
from tunestation.training.fast.step import Step
from tunestation.training.fast.weights import Member, Scratch, Together

MANY = 1024
"""Rows of logits."""
BITS = 2
"""Raised whenever this step gives other bits on a GPU. 2: residuals inside of products, and queries that go backward one by one."""
LEARNING = ("lora_A.default.weight", "lora_B.default.weight")
"""What peft calls the weights that it teaches; an adapter may let more learn: DoRA's magnitudes, biases, whole modules."""


def obstacle(model: nn.Module, longest: int) -> str | None:
    """Why `model`, a peft model, takes transformers' own step on documents of up to `longest` tokens; None if the fast one knows it."""
    if not hasattr(model, "peft_config"):
        return "all weights learn"
    inner = model.get_base_model()
    reason = unknown(inner.config, longest)
    if reason:
        return reason
    for name, module in inner.model.layers.named_modules():
        if hasattr(module, "lora_A") or isinstance(module, nn.Linear):
            reason = _strange(Member(module)) if "lora_" not in name else None
            if reason:
                return f"{name} {reason}"
    if hasattr(inner.lm_head, "lora_A") or hasattr(inner.model.embed_tokens, "lora_embedding_A"):
        return "the head or the embedding is adapted"
    others = (name for name, weight in inner.named_parameters() if weight.requires_grad and not name.endswith(LEARNING))
    return next((f"{name} learns" for name in others), None)


def _strange(member: Member) -> str | None:
    if hasattr(member.base.weight, "quant_state") and not nf4.supported(member.base.weight):
        return "is quantised, but not to NF4 in blocks of 64"
    return None


def _rows(most: int, on_gpu: bool) -> int:
    """Of logits at once, of which memory allows `most`: many on a GPU are a power of 2, whose tiles are whole and fill it."""
    return 1 << (most.bit_length() - 1) if on_gpu and most >= MANY else max(1, most)


@dataclass
class Fast:
    """The fast step of one model: put in place of its forward pass, and told what to keep in memory."""

    model: PreTrainedModel
    layers: list[Layer]
    norm: Norm
    """After the last layer."""
    choice: memory.Choice
    """What is kept in memory."""
    waiting: Waiting
    """What waits in host memory."""
    loss_by_quack: bool = False
    """Whether the loss is QuACK's."""
    in_order: bool = False
    """Whether attention's gradients are summed in one order on a GPU too."""
    beside: Beside = field(default_factory=Beside)
    """Where adapters' gradients are made, if memory is free."""
    together: list[Together] = field(default_factory=list)
    """What writes adapters of all layers to weights that are held ready."""

    @classmethod
    def over(
        cls,
        adapted: nn.Module,
        host: memory.Host = memory.ALL_THERE,
        device: torch.device | None = None,
        in_order: bool = False,
        tokens: int = flash.MANY,
    ) -> Fast:
        """Take over the training forward pass of `adapted`, a peft model without an `obstacle`.

        What `host` says waits from the start; `device` is where steps will run, if the model is not there yet, with up to `tokens` at once.
        """
        inner, scratch = adapted.get_base_model(), Scratch()
        eight_bit = any(isinstance(module, Float8Linear) for module in inner.modules())
        projection = Float8Projection if eight_bit else Projection
        blocks = [Block.of(module, inner.config) for module in inner.model.layers]
        where, heads = device or inner.device, tuple(blocks[0].heads[:2])
        inside = not eight_bit and blocks[0].pairs and gated.known(where, inner.dtype)
        attention = Flash if flash.known(where, inner.dtype, heads, blocks[0].size, in_order, tokens >= flash.MANY) else ByTorch
        layers = [Layer(block, index, projection, scratch, inside, attention) for index, block in enumerate(blocks)]
        norm = Norm(inner.model.norm, blocks[0].norm1.offset)
        choice = memory.Choice(0, 0, len(layers), 0, memory.LITTLE_LOGITS, host)
        by_quack = quack_loss.known(where, inner.dtype, inner.lm_head.weight.shape[0])
        fast = cls(inner, layers, norm, choice, Waiting(inner, choice, device), by_quack, in_order)
        stock = inner.forward
        inner.forward = lambda *args, cu_seqlens=None, **options: (
            stock(*args, **options) if cu_seqlens is None else fast.forward(cu_seqlens=cu_seqlens, **options)
        )
        return fast

    @property
    def made_by(self) -> str:
        """What its bits depend on besides the GPU and the versions that a stage's key names."""
        first = self.layers[0]
        used = {"QuACK": "quack-kernels"} if first.gate_up.paired or self.loss_by_quack else {}
        used |= {"FlashAttention": "flash-attn-4"} if first.attention is Flash else {}
        return ", ".join([f"fast step {BITS}", *(f"{name} {version(package)}" for name, package in used.items())])

    def join(self) -> None:
        """From now on adapters learn as one weight a layer, where they are of one kind: for a GPU, which small ones keep waiting.

        Before an optimizer is made. Gradients and updates are the same, but for the order in which the norm of all is summed, and for
        the blocks of an 8-bit optimizer without ZeRO, which begin with each weight.
        """
        for layer, module in zip(self.layers, self.model.model.layers, strict=True):
            if layer.joined is None and layer.layout.joinable:
                layer.joined = Joined(module, layer.layout)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        longest: int,
        labelled: torch.Tensor,
        targets: torch.Tensor,
        host_ids: np.ndarray,
        **_: object,
    ) -> CausalLMOutputWithPast:
        """The summed loss of a micro-batch as `batches.lay` makes it: input_ids, position_ids [1, T]; the rest is said there."""
        backbone = self.model.model
        h = self._embed(input_ids, host_ids)
        cos, sin = backbone.rotary_emb(h, position_ids)
        half = cos.shape[-1] // 2
        documents = Documents(cu_seqlens, longest, input_ids.shape[1], self.in_order)
        inputs = self.waiting.inputs if torch.is_grad_enabled() else Inputs()
        step = Step(documents, cos[0, :, :half], sin[0, :, :half], self._seed(), inputs, self.waiting.weights, self.beside)
        h = h[0]
        self.look_up()
        for group in self.together:
            group.write()
        for layer in self.layers:
            h = layer(h, step)
        head = self.model.lm_head.weight
        rows = _rows(self.choice.logits // (head.shape[0] * h.element_size()), h.is_cuda)
        return CausalLMOutputWithPast(loss=summed_loss(h, self.norm, head, labelled, targets, rows))

    def _embed(self, input_ids: torch.Tensor, host_ids: np.ndarray) -> torch.Tensor:
        """h [1, T, K]; where the embedding waits in host memory, by the ids that are there already."""
        embedding = self.model.model.embed_tokens
        if isinstance(embedding, HostEmbedding):
            return embedding.gather(torch.from_numpy(host_ids), input_ids.device)
        return embedding(input_ids)

    def look_up(self) -> None:
        """Others may have put tensors in the place of weights. Before memory is counted, too: DeepSpeed leaves copies of adapters."""
        for layer in self.layers:
            layer.look_up()

    def _seed(self) -> int | None:
        """Drawn from torch's generator on the host, which checkpoints keep."""
        drops = self.model.training and any(projection.p for layer in self.layers for projection in layer.projections)
        return int(torch.randint(2**31, (1,))) if drops else None

    @property
    def shape(self) -> memory.Shape:
        """What memory is reckoned with."""
        ranks = [[rank for projection in layer.projections for rank in projection.filling.ranks] for layer in self.layers]
        shape = memory.Shape.of(self.model.config.to_dict(), max(map(max, ranks)))
        counts = tuple(sum(rank > 0 for rank in member) for member in zip(*ranks, strict=True))
        return shape if min(counts) == shape.layers else replace(shape, adapted=counts)

    def forget(self) -> None:
        """Give back weights held ready and the buffer for others; what waits in host memory comes back."""
        self.together = []
        self.waiting.become(replace(self.choice, host=memory.ALL_THERE))
        for layer in self.layers:
            for projection in layer.projections:
                projection.keep_weights(None)
                projection.scratch.forget()

    def keep(self, choice: memory.Choice) -> None:
        """Hold in memory from now on what `choice` says."""
        self.together = []
        self.waiting.become(choice)
        self.choice = choice
        like = self.model.model.norm.weight
        self.look_up()
        if self.waiting.weights:
            self.waiting.weights.take(0, 0)  # those of the first layer, which are tried
        at_once = all(projection.filling.agrees(like) for projection in self.layers[0].projections)
        if not at_once:
            print("  note: this GPU or its compiler writes other weights in one launch than singly; the slower way is taken", flush=True)
        for index, (layer, level) in enumerate(zip(self.layers, choice.levels, strict=True)):
            layer.keep = Keep(level)
            for projection in layer.projections:
                projection.filling.at_once = at_once
                projection.keep_weights(like if index < choice.dense else None)
        together = Together.of([(each.filling, each.ready) for layer in self.layers for each in layer.projections if each.ready])
        self.together = [group for group in together if group.agrees()]  # others are written layer by layer
