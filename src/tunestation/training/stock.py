"""What transformers' own step holds in memory and how long it takes: arithmetic alone, as `memory` and `pace` do it for the fast one.

All weights learn, or a model is adapted that the fast step does not know, or ZeRO-3 shares the weights. What autograd keeps was counted
on a CPU, tensor by tensor (tests/pipeline/test_plan_counts.py), and so were the bytes that operations beside the products read and write.
No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunestation.training.cards import Card
from tunestation.training.learned import HALF, Learned
from tunestation.training.memory import LITTLE_LOGITS, NF4, NF4_SINGLE, WORKSPACE, Choice, Shape
from tunestation.training.pace import ATTENTION, DEQUANTISED, PRODUCTS, TRAFFIC, operations, optimizer_step

LOGITS = 12
"""Bytes of a logit at the loss: bfloat16 with a copy of the labelled rows, fp32, and its log-softmax; as many again on the way back."""
LAUNCHES = 0.0135
"""Seconds in which a processor gives a GPU the work of one layer, there and back: read in bench/results, as `pace.LAUNCHES`."""
BETWEEN = 0.7
"""Share of the datasheet's rate between GPUs that collective operations reach; not measured."""
LARGEST = {None: 0, 0: 0, 1: 0, 2: 1, 3: 2}
"""ZeRO stage (None: no DeepSpeed) -> copies of the largest single gradient beside DeepSpeed's buckets."""


@dataclass(frozen=True)
class Stock:
    """One recipe under transformers' own step, on one of `ranks` GPUs."""

    shape: Shape
    full: bool
    """Whether all weights learn."""
    base: str
    """Of frozen weights: nf4 or bf16."""
    double_quant: bool
    dropout: bool
    again: bool
    """Whether every layer is computed again in the backward pass."""
    stage: int | None
    """Of ZeRO; None: without DeepSpeed, as transformers' Trainer trains by itself, adapters in fp32 and all products under autocast."""
    offload: str
    ranks: int
    gradients: Learned

    @property
    def learning(self) -> int:
        """Weights that learn."""
        return self.shape.weights if self.full else self.shape.adapters

    @property
    def sharing(self) -> int:
        """GPUs that share the weights."""
        return self.ranks if self.stage == 3 else 1

    @property
    def choice(self) -> Choice:
        """The same in the fast step's words."""
        layers = self.shape.layers
        return Choice(layers, 0, 0, 0, LITTLE_LOGITS) if self.again else Choice(0, 0, layers, 0, LITTLE_LOGITS)

    def components(self, tokens: int) -> dict[str, int]:
        """Bytes on the GPU at the worst moment of a step with micro-batches of `tokens`, by what takes them."""
        gathered, activations, gradients = self.worst(tokens)
        found, own = self.gradients, (4 if self.stage is None else HALF) / self.sharing * (self.offload != "all")
        buffer = found.resident - found.optimizer - own  # ZeRO-3 has one for gradients at all times
        parts = {
            "frozen weights": self.frozen,
            "weights that learn": own * self.learning,
            "weights brought together": gathered,
            "master copies and optimizer": found.optimizer * self.learning,
            "gradients": buffer * self.learning + gradients,
            "activations": activations,
            "libraries": WORKSPACE,
        }
        return {name: round(size) for name, size in parts.items() if size}

    @property
    def frozen(self) -> float:
        """Bytes of frozen weights on this GPU; scales of 4-bit ones are not shared."""
        if self.full or self.offload == "all":
            return 0
        a_weight = (NF4 if self.double_quant else NF4_SINGLE) if self.base == "nf4" else HALF
        codes = 0.5 if self.base == "nf4" else HALF
        return self.shape.linear * (a_weight - codes + codes / self.sharing) + HALF * self.shape.embedding / self.sharing

    @property
    def gathered(self) -> int:
        """Bytes of weights that ZeRO-3 has brought together: the largest, a layer to be used again, one to come, and its copy in flight."""
        if self.sharing == 1 and self.offload != "all":
            return 0
        shape, a_weight = self.shape, 0.5 if self.base == "nf4" and not self.full else HALF
        a_layer = (a_weight * shape.linear + HALF * shape.embedding) / shape.layers
        return round(max(HALF * shape.vocabulary * shape.hidden, a_layer) + 3 * a_layer)

    def kept(self) -> int:
        """Bytes of a token that autograd keeps of one layer, all of it in bfloat16 but both norms' inputs and attention's log-sums."""
        shape = self.shape
        queries, both = shape.heads * shape.head_size, 2 * shape.kv_heads * shape.head_size
        size = (12 if self.full else 8) * shape.hidden + 6 * shape.intermediate + 4 * queries + 2 * both + 4 * shape.heads + 8
        return round(size + self._inputs() + HALF * shape.tails * (not self.full))

    def _inputs(self) -> float:
        """Bytes of a token that products keep of their inputs; o's is kept by attention already.

        Adapters on one input share it, unless each drops from it (what was dropped is a byte on a GPU) or casts its own copy of it.
        """
        each = 3 if self.dropout else HALF if self.stage is None else 0
        if each and not self.full:
            return each * sum(product.members * product.inputs for product in self.shape.products)
        qkv, _, gate_up, down = self.shape.products
        return HALF * sum(product.inputs * (1 if self.full else product.touched) for product in (qkv, gate_up, down))

    def worst(self, tokens: int) -> tuple[int, int, int]:
        """Bytes of weights brought together, of activations and of gradients when all together are most."""
        shape, found = self.shape, self.gradients
        layer, working = tokens * self.kept(), tokens * (4 * shape.intermediate + 6 * shape.hidden)
        working += tokens * 4 * shape.intermediate * (self.stage is None)  # the widest input in fp32
        working += HALF * shape.hidden * shape.intermediate * (self.base == "nf4" and not self.full)  # dequantised one by one
        inputs = tokens * HALF * shape.hidden * shape.layers
        kept, first = (inputs, layer) if self.again else (shape.layers * layer + self.cast, 0)
        end = tokens * ((8 if self.full else 6) * shape.hidden + LOGITS * shape.vocabulary)
        copies = LARGEST[self.stage if self.offload == "none" else max(2, self.stage)]
        largest = copies * HALF * shape.vocabulary * shape.hidden * self.full
        held, early, backward, step = (round(part * self.learning) for part in (found.held, found.early, found.backward, found.step))
        moments = (
            (self.gathered, kept + end, held),
            (self.gathered, kept + first + working, early + largest),
            (self.gathered, layer + working, backward + largest),
            (0, 0, step),
        )
        gathered, activations, gradients = max(moments, key=sum)
        return gathered, activations, gradients + found.bucket

    @property
    def cast(self) -> int:
        """Bytes of adapters' copies in bfloat16, which autocast makes and autograd keeps."""
        return HALF * self.shape.adapters * (self.stage is None and not self.full)

    def host(self) -> dict[str, int]:
        """Bytes of host memory for this GPU, by what takes them."""
        frozen = 0 if self.full else self.shape.linear + self.shape.embedding
        parts = {
            "optimizer": self.gradients.host * self.learning,
            "weights": HALF * (self.learning + frozen) / self.ranks * (self.offload == "all"),
        }
        return {name: round(size) for name, size in parts.items() if size}

    def micro_batch(self, card: Card, tokens: int, labelled: int, span: float) -> float:
        """Seconds of a forward and backward pass, gradients reduced where every pass does that."""
        work, rate, again = operations(self.shape, span), card.rate * 1e12, self.again
        linear = work["products"] * (1.5 if self.full else 1) + 2 * self.shape.linear * again
        head = work["head"] * (1.5 if self.full else 1)
        seconds = (tokens * linear + labelled * head) / (rate * PRODUCTS)
        seconds += tokens * work["attention"] * (1 + 2 / 7 * again) / (rate * ATTENTION)
        seconds += tokens * self.shape.layers * self.moved() / (card.bandwidth * 1e9 * TRAFFIC)
        if self.base == "nf4" and not self.full:
            seconds += (2 + again) * self.shape.linear * (HALF + 0.52) / (card.bandwidth * 1e9 * DEQUANTISED)
        seconds = max(seconds, self.shape.layers * LAUNCHES * (1 + again / 3))
        if self.stage == 3:
            seconds = max(seconds, 2 * self._collected(card))  # weights come for the way there, and for the way back
        return seconds + (self._reduced(card) if (self.stage or 0) > 1 else 0)

    def moved(self) -> float:
        """Bytes that the operations of one layer beside its products read and write for a token, there and back."""
        shape, products = self.shape, self.shape.products
        queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        hidden, inner, a, b = MOVED[self.again]
        size = (hidden + 16 * self.full) * shape.hidden + inner * shape.intermediate + a * queries + b * keys
        if self.full:
            return size
        inputs, outputs = (sum(parts) for parts in zip(*((one.members * one.inputs, one.adapted) for one in products), strict=True))
        again = 10 * (outputs - products[-1].adapted) * self.again  # the layer's last sum is not computed again
        return size + (12 + PREPARED[self.stage is None, self.dropout] * (1 + self.again / 2)) * inputs + 20 * outputs + again

    def optimizer_step(self, card: Card) -> float:
        """Seconds between the last micro-batch of a step and the first of the next."""
        seconds = optimizer_step(self.learning / (self.ranks if self.stage else 1), card, self.offload)
        if (self.stage or 0) < 2:
            seconds += self._reduced(card)
        return seconds + (HALF * self.learning * self._far(card) if self.stage in (1, 2) else 0)

    def _far(self, card: Card) -> float:
        """Seconds for each byte of a tensor that all GPUs together put together, or add up."""
        return (1 - 1 / self.ranks) / (card.between * 1e9 * BETWEEN)

    def _reduced(self, card: Card) -> float:
        return HALF * self.learning * self._far(card) * (1 if self.stage else 2)

    def _collected(self, card: Card) -> float:
        frozen = 0 if self.full else self.shape.linear + self.shape.embedding
        weights = HALF * (self.learning + frozen)
        return weights * self._far(card) + (weights / (card.link * 1e9) if self.offload == "all" else 0)


MOVED = {False: (290, 28, 46, 50), True: (368, 38, 66, 70)}
"""Whether layers are computed again -> bytes for each column of hidden, intermediate, queries, keys, adapters left out."""
PREPARED = {(False, False): 0, (False, True): 10, (True, False): 24, (True, True): 42}
"""Whether adapters are in fp32 under autocast, and drop -> bytes for each column of each one's input until it is in the product."""
