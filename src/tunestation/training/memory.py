"""What a training step of the fast kind holds in memory: arithmetic alone, for `invoke plan` and for training itself. No torch here.

All results are bytes of 16-bit numbers unless they say otherwise; T is the tokens of a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
HALF = 2
"""Bytes of a bfloat16."""
LITTLE_LOGITS, MANY_LOGITS = 2**27, 2**29
"""Bytes of logits that exist at once when memory is short, and when it is not: larger pieces are faster by little."""
SPARE = 0.04
"""Share of a GPU's memory left to fragmentation and to what libraries take for themselves."""


@dataclass(frozen=True)
class Shape:
    """A Llama-like model under adapters of one rank on all its linear layers."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    """Whether head and embedding are one tensor."""
    rank: int
    head_norms: bool = False
    """Whether queries and keys are normalised: then they are kept from before, too."""

    @classmethod
    def of(cls, config: dict, rank: int) -> Shape:
        """From the fields of a model's config.json."""
        heads = config["num_attention_heads"]
        return cls(
            config["hidden_size"],
            config["intermediate_size"],
            config["num_hidden_layers"],
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or config["hidden_size"] // heads,
            config["vocab_size"],
            bool(config.get("tie_word_embeddings")),
            rank,
            config.get("model_type", config.get("family")) == "qwen3",
        )

    @property
    def products(self) -> list[tuple[int, int, int]]:
        """(inputs, outputs, adapted layers) of the four products of a decoder layer."""
        queries, both = self.heads * self.head_size, 2 * self.kv_heads * self.head_size
        return [
            (self.hidden, queries + both, 3),
            (queries, self.hidden, 1),
            (self.hidden, 2 * self.intermediate, 2),
            (self.intermediate, self.hidden, 1),
        ]

    @property
    def linear(self) -> int:
        """Weights of all linear layers but the head."""
        return self.layers * sum(inputs * outputs for inputs, outputs, _ in self.products)

    @property
    def embedding(self) -> int:
        """Weights of embedding and head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def adapters(self) -> int:
        """Weights of all adapters."""
        return self.layers * self.rank * sum(inputs * members + outputs for inputs, outputs, members in self.products)

    @property
    def tails(self) -> int:
        """Columns that adapters add to the inputs of a layer's products."""
        return 7 * self.rank


def kept(shape: Shape, keep: int) -> int:
    """A token's share of what one layer keeps between forward and backward pass, by `layer.Keep`."""
    if keep == 2:
        return HALF * (shape.hidden + shape.rank)
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_size + 2 * shape.heads  # q, k, v, result; log-sums in fp32
    before = (shape.heads + shape.kv_heads) * shape.head_size if shape.head_norms else 0
    numbers = 2 * shape.hidden + attention + before + shape.tails
    return HALF * (numbers if keep == 1 else numbers + 2 * shape.intermediate)


def working(shape: Shape, tokens: int, keep: int) -> int:
    """What is alive beside kept activations at the worst moment of a layer's backward pass, or of the loss."""
    again = kept(shape, 0) - kept(shape, keep)
    layer = HALF * (3 * shape.intermediate + 3 * shape.hidden + 3 * shape.rank)
    return tokens * max(again + layer, 5 * HALF * shape.hidden)


def scratch(shape: Shape) -> int:
    """The buffer into which the largest product's weights are dequantised."""
    return HALF * max((outputs + members * shape.rank) * (inputs + members * shape.rank) for inputs, outputs, members in shape.products)


def dense(shape: Shape) -> int:
    """One layer's weights held ready in 16 bits, with room for its adapters."""
    return HALF * sum((outputs + members * shape.rank) * (inputs + members * shape.rank) for inputs, outputs, members in shape.products)


@dataclass(frozen=True)
class Choice:
    """What training keeps: of the layers, from the first, `input` keep their input, `attention` all but gate and up, the rest all."""

    input: int
    attention: int
    everything: int
    dense: int
    """Layers whose 4-bit weights are held ready in 16 bits."""
    logits: int
    """Bytes of logits at once."""

    @property
    def levels(self) -> list[int]:
        """`layer.Keep` of each layer. The first ones keep least: by the time they are computed again, the others are done with."""
        return [2] * self.input + [1] * self.attention + [0] * self.everything

    @property
    def told(self) -> str:
        """In words."""
        layers = len(self.levels)
        parts = [f"{self.input} of {layers} layers computed again"] if self.input else []
        parts += [f"gate and up of {self.attention} computed again"] if self.attention else []
        parts = parts or ["nothing computed again"]
        return ", ".join([*parts, *([f"weights of {self.dense} layers kept in 16 bits"] if self.dense else [])])


def choose(shape: Shape, tokens: int, free: int, checkpointing: bool | None, dequantised: bool) -> Choice:
    """The fastest choice that fits into `free` bytes, with micro-batches of `tokens`.

    `checkpointing`: None lets memory decide; True computes every layer again, False none. `dequantised`: the base has 4-bit weights.
    """
    least, all_, some = (tokens * kept(shape, keep) for keep in (2, 0, 1))
    left = free - shape.layers * least - LITTLE_LOGITS - scratch(shape) * dequantised
    if checkpointing is False or (checkpointing is None and left - working(shape, tokens, 0) >= shape.layers * (all_ - least)):
        left -= working(shape, tokens, 0) + shape.layers * (all_ - least)
        everything, attention = shape.layers, 0
    else:
        left -= working(shape, tokens, 2)
        fits = 0 if checkpointing else max(0, left)
        everything = min(shape.layers - 1, fits // (all_ - least))
        attention = min(shape.layers - everything, (fits - everything * (all_ - least)) // (some - least))
        left = 0 if checkpointing else left - everything * (all_ - least) - attention * (some - least)
    roomy = left > 4 * MANY_LOGITS
    left -= MANY_LOGITS if roomy else 0
    ready = min(shape.layers, max(0, left) // dense(shape)) if dequantised else 0
    return Choice(shape.layers - everything - attention, attention, everything, ready, MANY_LOGITS if roomy else LITTLE_LOGITS)


NF4, NF4_SINGLE = 0.5 + 1 / 64 + 4 / 16384, 0.5 + 4 / 64
"""Bytes of a 4-bit weight with its share of scales, themselves quantised or not."""
STATES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_32bit": 0}
"""Bytes of Adam's states for a weight that must stay on the GPU."""
WORKSPACE = 120 * 2**20
"""What matrix libraries hold for themselves, and what lies between allocations."""


def base_bytes(shape: Shape, base: str, double_quant: bool = True) -> int:
    """Of the frozen linear layers: nf4, fp8 (by rows and by columns) or bf16."""
    a_weight = {"nf4": NF4 if double_quant else NF4_SINGLE, "fp8": 2, "bf16": HALF}[base]
    return round(shape.linear * a_weight)


def learned_bytes(optimizer: str, deepspeed: bool, offload: bool = False) -> tuple[int, int]:
    """Of one adapter weight: (always on the GPU, more while gradients are there). Paged states may leave the GPU and are not counted."""
    states = STATES[optimizer]
    if not deepspeed:
        return 4 + states, 4
    return (2, 4) if offload else (2 + 4 + states, 6)


def components(shape: Shape, choice: Choice, tokens: int, base: str, learned: tuple[int, int], double_quant: bool = True) -> dict[str, int]:
    """Bytes of a training step at its worst moment, by what takes them."""
    resident, gradients = learned
    keeps = sum(tokens * kept(shape, level) for level in choice.levels)
    first = choice.levels[-1]
    buffer = scratch(shape) if base != "fp8" and choice.dense < shape.layers else 0
    loss = choice.logits + 5 * HALF * tokens * shape.hidden
    # either activations are at their most, before the first gradients, or the last layer is computed while all gradients are there
    most = max(keeps + max(working(shape, tokens, first), loss), gradients * shape.adapters + tokens * kept(shape, choice.levels[0]))
    return {
        "frozen base": base_bytes(shape, base, double_quant),
        "embedding and head": HALF * shape.embedding,
        "adapters and optimizer": resident * shape.adapters,
        "weights in 16 bits": choice.dense * dense(shape) + buffer,
        "activations and gradients": most,
        "libraries": WORKSPACE,
    }
