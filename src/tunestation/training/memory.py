"""What a training step of the fast kind holds in memory: arithmetic alone, for `invoke plan` and for training itself. No torch here.

All results are bytes of 16-bit numbers unless they say otherwise; T is the tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tunestation.training.learned import HALF, Learned
from tunestation.training.shape import Shape

GIB = 2**30
LITTLE_LOGITS, MANY_LOGITS = 2**27, 2**29
"""Bytes of logits that exist at once when memory is short, and when it is not: larger pieces are faster by little."""
SPARE = 0.04
"""Share of a GPU's memory left to fragmentation and to what libraries take for themselves."""


def kept(shape: Shape, keep: int) -> int:
    """A token's share of what one layer keeps between forward and backward pass, by `layer.Keep`."""
    if keep == 2:
        return HALF * (shape.hidden + shape.rank)
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_size + 2 * shape.heads  # q, k, v, result; log-sums in fp32
    before = (shape.heads + shape.kv_heads) * shape.head_size if shape.head_norms else 0
    numbers = 2 * shape.hidden + attention + before + shape.tails
    numbers += 2 * shape.intermediate * (keep < 1) + (2 * shape.hidden + shape.intermediate) * (keep < 0)
    return round(HALF * numbers)


def working(shape: Shape, tokens: int, keep: int, eight: bool = False) -> int:
    """What is alive beside kept activations at the worst moment of a layer's backward pass, or of the loss. `eight`: an 8-bit base."""
    again = max(0, kept(shape, 0) - kept(shape, keep))
    layer = HALF * (shape.intermediate + 3 * shape.hidden + 3 * shape.rank) + 3 * shape.intermediate * eight
    return tokens * max(again + layer, 5 * HALF * shape.hidden)


def scratch(shape: Shape) -> int:
    """The buffer into which the largest product's weights are dequantised."""
    return max(_buffers(shape))


def dense(shape: Shape) -> int:
    """One layer's weights held ready in 16 bits, with room for its adapters."""
    return sum(_buffers(shape))


def _buffers(shape: Shape) -> list[int]:
    return [round(HALF * (product.outputs + product.columns) * (product.inputs + product.columns)) for product in shape.products]


@dataclass(frozen=True)
class Host:
    """What waits in host memory and comes to the GPU when it is wanted."""

    embedding: bool = False
    """The embedding; a micro-batch's rows are gathered from it."""
    inputs: bool = False
    """The inputs of layers that are computed again, between forward and backward pass."""
    weights: int = 0
    """Layers whose frozen weights come for each pass over them."""

    @property
    def told(self) -> list[str]:
        """In words."""
        parts = ["the embedding"] * self.embedding + ["layers' inputs"] * self.inputs
        return [*parts, *([f"weights of {self.weights} layers"] if self.weights else [])]


ALL_THERE = Host()
"""Nothing waits: the whole model is on the GPU."""


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
    host: Host = ALL_THERE
    more: int = 0
    """Of those that keep all, the last: they keep the inputs of their products too."""

    @property
    def levels(self) -> list[int]:
        """`layer.Keep` of each layer. The first ones keep least: by the time they are computed again, the others are done with."""
        return [2] * self.input + [1] * self.attention + [0] * (self.everything - self.more) + [-1] * self.more

    @property
    def again(self) -> str:
        """What is computed again, in few words."""
        parts = [f"{self.input} of {len(self.levels)} layers"] * (self.input > 0)
        return ", ".join(parts + [f"gate, up of {self.attention}"] * (self.attention > 0)) or "nothing"

    @property
    def told(self) -> str:
        """In words."""
        layers = len(self.levels)
        parts = [f"{self.input} of {layers} layers computed again"] * (self.input > 0)
        parts = parts + [f"gate and up of {self.attention} computed again"] * (self.attention > 0) or ["nothing computed again"]
        parts += [f"products' inputs of {self.more} kept"] if self.more else []
        parts += [f"weights of {self.dense} layers kept in 16 bits"] if self.dense else []
        return ", ".join([*parts, *([f"in host memory: {' and '.join(self.host.told)}"] if self.host.told else [])])


TRIES = 3
"""Times that less is kept, so that gradients fit beside it, before host memory is used."""
IN_FLIGHT = 2
"""Layers' inputs, or layers' weights, on the GPU while the others are in host memory: one in use, one coming or leaving."""


def freed(shape: Shape, host: Host, a_layer: int) -> int:
    """Bytes of the frozen model that `host` takes off the GPU; `a_layer` are those of a layer's weights."""
    embedding = HALF * shape.vocabulary * shape.hidden * host.embedding
    return embedding + (host.weights - IN_FLIGHT) * a_layer * (host.weights > 0)


def _waiting(shape: Shape, tokens: int, host: Host) -> tuple[int, int]:
    """Bytes on the GPU of a layer of which only the input is kept; and of all inputs that are on their way."""
    if host.inputs:
        return tokens * HALF * shape.rank, IN_FLIGHT * tokens * HALF * shape.hidden
    return tokens * kept(shape, 2), 0


def choose(
    shape: Shape,
    tokens: int,
    free: int,
    checkpointing: bool | None,
    base: str,
    gradients: Learned,
    double_quant: bool = True,
    waits: Host = ALL_THERE,
) -> Choice:
    """The fastest choice that fits into `free` bytes beside the frozen model and what learns, with micro-batches of `tokens`.

    `free` is what is free now, with that of the model which `waits` in host memory already.
    `checkpointing`: None lets memory decide; True computes every layer again, False none. Host memory is used only if nothing fits else,
    and what costs least of it first. If even that does not fit, the smallest is returned.
    """
    a_layer = base_bytes(shape, base, double_quant) // shape.layers
    for host in _ladder(shape, checkpointing, base):
        room = free + freed(shape, host, a_layer) - freed(shape, waits, a_layer)
        lacking = round(gradients.held * shape.adapters) + gradients.bucket
        for _ in range(TRIES):
            choice, left = _keep(shape, tokens, room - lacking, checkpointing, base, host)
            buffers = choice.dense * dense(shape) + scratch(shape) * (base != "fp8")
            over = activations(shape, choice, tokens, base, gradients) + buffers - room
            if left >= 0 and over <= 0:
                return choice
            lacking += max(0, over)  # gradients come while much of what was kept is still there
    return choice


def activations(shape: Shape, choice: Choice, tokens: int, base: str, gradients: Learned) -> int:
    """Bytes of activations and gradients at their most."""
    eight = base == "fp8"
    least, flying = _waiting(shape, tokens, choice.host)
    keeps = [least if level == 2 else tokens * kept(shape, level) for level in choice.levels]
    work = max(working(shape, tokens, choice.levels[-1], eight), choice.logits + 5 * HALF * tokens * shape.hidden)
    held, backward = gradients.held * shape.adapters, gradients.backward * shape.adapters
    moments = (
        flying + sum(keeps) + work + held,  # the last layer's backward pass, or the loss
        flying + sum(keeps[:-1]) + work + gradients.early * shape.adapters,  # the one's before
        flying + least + working(shape, tokens, choice.levels[0], eight) + backward,  # the first layer's
        gradients.step * shape.adapters,
    )
    return round(max(moments)) + gradients.bucket


def _ladder(shape: Shape, checkpointing: bool | None, base: str) -> Iterator[Host]:
    """From nothing in host memory to all that can be there."""
    yield ALL_THERE
    rows, inputs = not shape.tied, checkpointing is not False
    if rows:
        yield Host(rows)
    if inputs:
        yield Host(rows, inputs)
    if base != "fp8":
        yield from (Host(rows, inputs, count) for count in range(IN_FLIGHT + 1, shape.layers + 1))


def _keep(shape: Shape, tokens: int, free: int, checkpointing: bool | None, base: str, host: Host) -> tuple[Choice, int]:
    """What of the activations is kept, given `host`; and the bytes that are left, below 0 if it does not fit."""
    eight = base == "fp8"
    all_, some = (tokens * kept(shape, keep) for keep in (0, 1))
    least, flying = _waiting(shape, tokens, host)
    left = free - shape.layers * least - flying - LITTLE_LOGITS - scratch(shape) * (not eight)
    if checkpointing is False or (checkpointing is None and left - working(shape, tokens, 0, eight) >= shape.layers * (all_ - least)):
        left -= working(shape, tokens, 0, eight) + shape.layers * (all_ - least)
        everything, attention = shape.layers, 0
    else:
        left -= working(shape, tokens, 2, eight)
        fits = 0 if checkpointing else max(0, left)
        everything = min(shape.layers - 1, fits // (all_ - least))
        attention = min(shape.layers - everything, (fits - everything * (all_ - least)) // (some - least))
        left = min(left, 0) if checkpointing else left - everything * (all_ - least) - attention * (some - least)
    roomy = left > 4 * MANY_LOGITS
    left -= MANY_LOGITS if roomy else 0
    ready = 0 if eight or host.weights else min(shape.layers, max(0, left) // dense(shape))
    left -= ready * dense(shape)
    all_made = roomy and everything == shape.layers and ready == (0 if eight else shape.layers)
    more = min(shape.layers, max(0, left) // (tokens * kept(shape, -1) - all_)) if all_made else 0
    logits = MANY_LOGITS if roomy else LITTLE_LOGITS
    return Choice(shape.layers - everything - attention, attention, everything, ready, logits, host, more), left


NF4, NF4_SINGLE = 0.5 + 1 / 64 + 4 / 16384, 0.5 + 4 / 64
"""Bytes of a 4-bit weight with its share of scales, themselves quantised or not."""
WORKSPACE = 120 * 2**20
"""What matrix libraries hold for themselves, and what lies between allocations."""


def base_bytes(shape: Shape, base: str, double_quant: bool = True) -> int:
    """Of the frozen linear layers: nf4, fp8 (by rows and by columns) or bf16."""
    a_weight = {"nf4": NF4 if double_quant else NF4_SINGLE, "fp8": 2, "bf16": HALF}[base]
    return round(shape.linear * a_weight)


def components(
    shape: Shape, choice: Choice, tokens: int, base: str, gradients: Learned, double_quant: bool = True
) -> dict[str, int]:
    """Bytes on the GPU of a training step at its worst moment, by what takes them."""
    frozen = base_bytes(shape, base, double_quant)
    buffer = 0 if base == "fp8" or choice.dense == shape.layers else scratch(shape)
    return {
        "frozen base": frozen - freed(shape, Host(weights=choice.host.weights), frozen // shape.layers),
        "embedding and head": HALF * shape.embedding - freed(shape, Host(choice.host.embedding), 0),
        "adapters and optimizer": round(gradients.resident * shape.adapters),
        "weights in 16 bits": choice.dense * dense(shape) + buffer,
        "activations and gradients": activations(shape, choice, tokens, base, gradients),
        "libraries": WORKSPACE,
    }


def host_bytes(shape: Shape, choice: Choice, tokens: int, base: str, double_quant: bool = True) -> dict[str, int]:
    """Bytes of host memory that `choice` takes, by what takes them."""
    host = choice.host
    parts = {
        "embedding": HALF * shape.vocabulary * shape.hidden * host.embedding,
        "layers' inputs": HALF * tokens * shape.hidden * choice.input * host.inputs,
        "frozen weights": base_bytes(shape, base, double_quant) * host.weights // shape.layers,
    }
    return {name: size for name, size in parts.items() if size}
