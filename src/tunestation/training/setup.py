"""What decides the memory and the speed of a training, and the arithmetic of either step over it. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tunestation.training import memory, pace
from tunestation.training.cards import Card
from tunestation.training.learned import Learned, learned
from tunestation.training.memory import GIB, HALF, SPARE, WORKSPACE, Choice, Shape
from tunestation.training.stock import Stock
from tunestation.training.zero import accumulation_steps


@dataclass(frozen=True)
class Setup:
    """The settings of a recipe that count, on `ranks` GPUs."""

    shape: Shape
    method: str
    base: str
    """How frozen weights are held: nf4, fp8 or bf16."""
    double_quant: bool
    optimizer: str
    dropout: float
    max_tokens: int
    micro: int
    """Packs or rows of a micro-batch."""
    batch: int
    """Packs or rows of a step, on all GPUs."""
    stage: int | None
    """Of ZeRO; None: without DeepSpeed, as the benchmark's steps and those of other stacks."""
    offload: str
    checkpointing: bool | None
    """None lets memory decide, where the fast step is taken."""
    ranks: int
    known: bool
    """Whether the fast step knows the family."""
    more: bool = False
    """Whether more learns than A and B of adapters."""

    @classmethod
    def of(cls, settings: dict, machine: dict, shape: Shape, ranks: int, known: bool, more: bool = False) -> Setup:
        """From the sections `train` and `runtime` as JSON; `known` and `more` as above."""
        method, base, lora = settings["method"], settings["base"], settings["lora"]
        wanted, stage = machine["gradient_checkpointing"], machine["zero_stage"]
        return cls(
            replace(shape, rank=lora["rank"]),
            method,
            base["type"] if method == "qlora" else "bf16",
            base["double_quant"],
            settings["optimizer"],
            lora["dropout"],
            settings["max_tokens"],
            machine["micro_batch_size"],
            settings["global_batch_size"],
            stage,
            machine["offload"],
            None if wanted == "auto" else wanted,
            ranks,
            known,
            more,
        )

    @property
    def fast(self) -> bool:
        """Whether the fast step is taken."""
        return self.known and not self.full and not self.shape.ends and not self.more and self.stage in (0, 1, 2)

    @property
    def full(self) -> bool:
        """Whether all weights learn."""
        return self.method == "full"

    @property
    def why_stock(self) -> str:
        """Why transformers' own step is taken; empty where the fast one is."""
        if self.fast:
            return ""
        if self.full:
            return "all weights learn"
        if self.stage == 3:
            return "ZeRO-3 shards the weights"
        if self.known and self.more:
            return "more than A and B of the adapter learns"
        return "the head or the embedding is adapted" if self.known and self.shape.ends else "the fast one does not know the family"

    @property
    def micro_batches(self) -> int:
        """Of a step, on each GPU. Raises InputError if the batch cannot be shared evenly."""
        return accumulation_steps(self.batch, self.micro, self.ranks)

    @property
    def learning(self) -> int:
        """Weights that learn."""
        return self.shape.weights if self.full else self.shape.adapters

    @property
    def gradients(self) -> Learned:
        """What weights that learn take on each GPU."""
        return learned(self.optimizer, self.stage, self.offload, self.ranks, self.micro_batches > 1, self.learning)

    @property
    def stock(self) -> Stock:
        """The same under transformers' own step, which computes every layer again unless it is told not to."""
        again, drops = self.checkpointing is not False, self.dropout > 0
        shared = (self.stage, self.offload, self.ranks, self.gradients)
        return Stock(self.shape, self.full, self.base, self.double_quant, drops, again, *shared)

    def choose(self, tokens: int, gib: float) -> Choice:
        """What training would keep on a GPU of `gib`, with micro-batches of `tokens`."""
        if not self.fast:
            return self.stock.choice
        resident = memory.base_bytes(self.shape, self.base, self.double_quant) + HALF * self.shape.embedding + WORKSPACE
        free = int(gib * (1 - SPARE) * GIB) - resident - round(self.gradients.resident * self.shape.adapters)
        return memory.choose(self.shape, tokens, free, self.checkpointing, self.base, self.gradients, self.double_quant)

    def components(self, choice: Choice, tokens: int) -> dict[str, int]:
        """Bytes on each GPU at the worst moment of a step, by what takes them."""
        if not self.fast:
            return self.stock.components(tokens)
        return memory.components(self.shape, choice, tokens, self.base, self.gradients, self.double_quant)

    def host(self, choice: Choice, tokens: int) -> dict[str, int]:
        """Bytes of host memory for each GPU, by what takes them."""
        if not self.fast:
            return self.stock.host()
        optimizer = round(self.gradients.host * self.shape.adapters)
        host = memory.host_bytes(self.shape, choice, tokens, self.base, self.double_quant)
        return host | ({"optimizer": optimizer} if optimizer else {})

    def step_seconds(self, card: Card, choice: Choice, tokens: int, span: float) -> float:
        """Seconds of an optimizer step with micro-batches of `tokens`, all labelled, in documents of `span` on average."""
        if self.fast:
            a_batch = pace.micro_batch(self.shape, card, choice, tokens, tokens, span, self.base, self.dropout > 0)
            mine = self.shape.adapters / (self.ranks if self.stage else 1)
            return self.micro_batches * a_batch + pace.optimizer_step(mine, card, self.offload)
        return self.micro_batches * self.stock.micro_batch(card, tokens, tokens, span) + self.stock.optimizer_step(card)


@dataclass(frozen=True)
class Estimate:
    """What training would do on cards of one kind, all packs full."""

    setup: Setup
    card: Card
    choice: Choice
    parts: dict[str, int]
    """Bytes on each GPU, by what takes them."""
    host: dict[str, int]
    """Bytes of host memory for each GPU, by what takes them."""
    step_seconds: float

    @classmethod
    def of(cls, setup: Setup, card: Card, span: float | None = None) -> Estimate:
        """On as many of `card` as `setup` says; `span`: mean tokens of a document, if that is known."""
        tokens = setup.max_tokens * setup.micro
        choice = setup.choose(tokens, card.memory)
        seconds = setup.step_seconds(card, choice, tokens, span or setup.max_tokens)
        return cls(setup, card, choice, setup.components(choice, tokens), setup.host(choice, tokens), seconds)

    @property
    def needed(self) -> float:
        """GiB at the worst moment."""
        return sum(self.parts.values()) / GIB

    @property
    def fits(self) -> bool:
        """Whether the card's memory suffices."""
        return self.needed <= self.card.memory * (1 - SPARE / 2)

    @property
    def speed(self) -> float:
        """Tokens a second on all GPUs."""
        return self.setup.max_tokens * self.setup.batch / self.step_seconds
