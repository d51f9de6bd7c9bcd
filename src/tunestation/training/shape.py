"""What a Llama-like model is made of, as far as memory and time are reckoned with it: arithmetic alone. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tunestation.training import families


@dataclass(frozen=True)
class Product:
    """Linear layers of a decoder layer on one input, and the adapters on them: where layers differ, on the average over all."""

    inputs: int
    sizes: tuple[int, ...]
    """Outputs of each linear layer."""
    shares: tuple[float, ...]
    """Of all decoder layers, those in which each of them is adapted."""
    rank: int

    @cached_property
    def outputs(self) -> int:
        """Of all together."""
        return sum(self.sizes)

    @cached_property
    def members(self) -> float:
        """Adapted ones."""
        return sum(self.shares)

    @cached_property
    def adapted(self) -> float:
        """Outputs of the adapted ones."""
        return sum(share * size for share, size in zip(self.shares, self.sizes, strict=True))

    @cached_property
    def columns(self) -> float:
        """That adapters add to the inputs, or to the outputs' gradient."""
        return self.rank * self.members

    @cached_property
    def touched(self) -> float:
        """Of all decoder layers, those in which any is adapted."""
        return max(self.shares)


@dataclass(frozen=True)
class Shape:
    """A Llama-like model under adapters of one rank, on all its linear layers unless `adapted` says otherwise."""

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
    packed: bool = False
    """Whether q, k, v are one layer and gate and up another, each under one adapter."""
    adapted: tuple[int, ...] = ()
    """In how many decoder layers each linear layer is adapted, in the order of `products`; empty: all in all."""
    ends: int = 0
    """How many of embedding and head are adapted."""

    @classmethod
    def of(cls, config: dict, rank: int) -> Shape:
        """From the fields of a model's config.json."""
        heads, family = config["num_attention_heads"], families.kind(config)
        return cls(
            config["hidden_size"],
            config["intermediate_size"],
            config["num_hidden_layers"],
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or config["hidden_size"] // heads,
            config["vocab_size"],
            bool(config.get("tie_word_embeddings", family in families.TIED)),
            rank,
            family == "qwen3",
            family == "phi3",
        )

    @cached_property
    def products(self) -> list[Product]:
        """The four of a decoder layer: q, k, v; o; gate, up; down."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        qkv, gate_up = (queries, keys, keys), (self.intermediate, self.intermediate)
        if self.packed:
            qkv, gate_up = (sum(qkv),), (sum(gate_up),)
        sizes = [(self.hidden, qkv), (queries, (self.hidden,)), (self.hidden, gate_up), (self.intermediate, (self.hidden,))]
        shares = iter(1 if count == self.layers else count / self.layers for count in self.adapted or (self.layers,) * 7)
        return [Product(inputs, outputs, tuple(next(shares) for _ in outputs), self.rank) for inputs, outputs in sizes]

    @cached_property
    def linear(self) -> int:
        """Weights of all linear layers but the head."""
        return self.layers * sum(product.inputs * product.outputs for product in self.products)

    @property
    def embedding(self) -> int:
        """Weights of embedding and head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def weights(self) -> int:
        """All weights, those of norms included."""
        return self.linear + self.embedding + (2 * self.layers + 1) * self.hidden

    @cached_property
    def adapters(self) -> int:
        """Weights of all adapters."""
        a_layer = sum(product.inputs * product.members + product.adapted for product in self.products)
        return self.rank * (round(self.layers * a_layer) + self.ends * (self.vocabulary + self.hidden))

    @cached_property
    def tails(self) -> float:
        """Columns that adapters add to the inputs of a layer's products."""
        return sum(product.columns for product in self.products)
