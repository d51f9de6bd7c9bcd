"""How long a training step of the fast kind takes: arithmetic alone, for `invoke plan`. No torch here.

Work is counted exactly, in operations and bytes. What a card makes of it is measured: on an H200 (bench/results), and carried over to
other cards (`cards`) in proportion to their datasheets.
"""

from __future__ import annotations

from tunestation.training.cards import Card
from tunestation.training.memory import HALF, Choice, Shape, base_bytes

PRODUCTS, PRODUCTS_8, ATTENTION, TRAFFIC, DEQUANTISED = 0.70, 0.66, 0.37, 0.68, 0.60
"""Shares of the datasheet's rates that products in 16 and 8 bits, attention, elementwise work and dequantisation reach."""
ADAMW, OPTIMIZER = 28, 0.012
"""Bytes that AdamW moves for a weight; seconds that a step's end takes besides, in DeepSpeed and in waiting for it."""
HOST_ADAM = 40e9
"""Bytes a second that AdamW moves in host memory: torch's, on the 16 cores beside an H200; on 2 cores it was 2.2e9."""
LAUNCHES = 0.0045
"""Seconds in which a processor gives a GPU the work of one layer, there and back: a floor that small micro-batches meet."""


def operations(shape: Shape, span: float) -> dict[str, float]:
    """Of one token, by kind, forward and backward, nothing computed again; `span` is the mean length of a document."""
    queries = shape.heads * shape.head_size
    return {
        "products": 4 * shape.linear,
        "head": 4 * shape.vocabulary * shape.hidden,
        "attention": 7 * span * queries * shape.layers,
        "adapters": 6 * shape.adapters,
    }


def ceiling(shape: Shape, span: float, rate: float) -> float:
    """Tokens a second if all of a token's work, all of them labelled, ran at `rate` operations a second."""
    return rate / sum(operations(shape, span).values())


def micro_batch(
    shape: Shape, card: Card, choice: Choice, tokens: int, labelled: int, span: float, base: str, dropout: bool = False
) -> float:
    """Seconds of a forward and backward pass. `base`: nf4, fp8 or bf16."""
    work = operations(shape, span)
    per_layer = shape.linear / shape.layers
    gate_up, down = 2 * shape.hidden * shape.intermediate, shape.hidden * shape.intermediate
    again = choice.input * (per_layer - down) + choice.attention * gate_up
    rate = card.rate * 1e12
    products = rate * PRODUCTS if base != "fp8" else (card.rate_8 or 0) * 1e12 * PRODUCTS_8
    seconds = tokens * (work["products"] + 2 * again) / products + labelled * work["head"] / (rate * PRODUCTS)
    seconds += tokens * work["attention"] * (1 + 2 / 7 * choice.input / shape.layers) / (rate * ATTENTION)
    seconds += tokens * traffic(shape, base, dropout) * (1 + 0.25 * choice.input / shape.layers) / (card.bandwidth * 1e9 * TRAFFIC)
    if base != "fp8":
        bytes_ = HALF * 2 if base == "bf16" else HALF + 0.52
        passes = 2 * (shape.layers - choice.dense) + choice.input + choice.attention
        seconds += passes * per_layer * bytes_ / (card.bandwidth * 1e9 * DEQUANTISED)
    seconds = max(seconds, shape.layers * LAUNCHES * (1 + choice.input / shape.layers / 3))
    return max(seconds, host_copies(shape, choice, tokens, base) / (card.link * 1e9))


def host_copies(shape: Shape, choice: Choice, tokens: int, base: str) -> float:
    """Bytes from host memory in a forward and backward pass: they hide behind the products until the link is the slower of the two."""
    host, a_token = choice.host, HALF * shape.hidden
    weights = 2 * host.weights * base_bytes(shape, base) / shape.layers
    return weights + tokens * a_token * (host.embedding + choice.input * host.inputs)


def traffic(shape: Shape, base: str, dropout: bool) -> float:
    """Bytes a token moves outside of the products: norms, rotation, SwiGLU, and adapters reading their inputs and gradients."""
    columns = 15 * shape.intermediate + 36 * shape.hidden
    if base == "fp8":
        columns += 7 * shape.intermediate + 20 * shape.hidden  # adapters are added in a pass of their own, activations quantised
    if dropout:
        columns += 4 * shape.intermediate + 12 * shape.hidden
    return HALF * columns * shape.layers


def optimizer_step(weights: float, card: Card, offload: str = "none") -> float:
    """Seconds between the last micro-batch of a step and the first of the next, for `weights` that learn on each GPU."""
    if offload == "none":
        return ADAMW * weights / (card.bandwidth * 1e9) + OPTIMIZER
    return ADAMW * weights / HOST_ADAM + 2 * HALF * weights / (card.link * 1e9) + OPTIMIZER
