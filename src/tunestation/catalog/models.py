"""The base models that are known by name: `models.yaml`, read strictly."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from pydantic import Field
from ruamel.yaml import YAML

from tunestation.models.native.registry import FAMILIES, NATIVE, REASONS
from tunestation.recipe.base import Name, Part, Positive
from tunestation.recipe.sources import RepoId

FILE = Path(__file__).parent / "models.yaml"
CONVERTED = frozenset(family.name for family in FAMILIES)
FORMATS = {
    "llama-original": "these are consolidated.*.pth files of another program; the repository whose name ends in -hf holds the same weights"
}
"""Families of the catalogue that are formats of files, and why they are not read."""


class Shape(Part):
    """What decides how much memory a model needs; None where that is not known."""

    family: str
    """A model_type of transformers, a family that is converted, or one that cannot be had."""
    hidden_size: Positive | None = None
    """Width of the residual stream."""
    num_hidden_layers: Positive | None = None
    """Decoder blocks."""
    num_attention_heads: Positive | None = None
    """Query heads."""
    num_key_value_heads: Positive | None = None
    """Key and value heads."""
    intermediate_size: Positive | None = None
    """Width of the feed-forward; with experts: of the one that all tokens go through, if there is one."""
    vocab_size: Positive | None = None
    """Rows of the embedding."""
    tie_word_embeddings: bool | None = None
    """Whether the head is the embedding."""
    head_dim: Positive | None = None
    """Width of a head, where it is not hidden_size / num_attention_heads."""
    experts: Positive | None = None
    """Experts of a layer."""
    experts_per_token: Positive | None = None
    """Experts that a token goes through."""
    expert_intermediate_size: Positive | None = None
    """Width of an expert."""

    @property
    def standing(self) -> str:
        """native, converted, or not possible."""
        if self.family in CONVERTED:
            return "converted"
        return "native" if self.family in NATIVE else "not possible"

    @property
    def why_not(self) -> str:
        """Why it is not possible."""
        return {**REASONS, **FORMATS}.get(self.family, "")


class Model(Part):
    """One base model."""

    shape: Shape
    """What it is made of."""
    template: Name | None = None
    """Template for conversations; `auto` is its own; None for a base model."""
    context: Positive | None = None
    """Tokens that it was released for."""
    limit: Positive | None = None
    """Tokens up to which the converted model computes what the original does; None: any length, or not known."""
    licence: str = ""
    """As its page names it."""
    gated: bool | None = None
    """Whether the hub wants its licence accepted first."""
    modelscope: RepoId | None = None
    """Its name on ModelScope."""


class _Catalogue(Part):
    shapes: dict[Name, Shape]
    models: dict[RepoId, Model] = Field(min_length=1)


@cache
def models() -> dict[str, Model]:
    """Repository on the Hugging Face hub -> model, in the order of the file."""
    tree = YAML(typ="safe").load(FILE.read_text(encoding="utf-8"))
    named = {repo: entry | {"shape": tree["shapes"][entry["shape"]]} for repo, entry in tree["models"].items()}
    return _Catalogue.model_validate_json(json.dumps(tree | {"models": named})).models


def find(repo: str) -> Model | None:
    """The model that a hub, either of the two, calls `repo`; None when it is not in the catalogue."""
    known = models()
    return known.get(repo) or next((each for each in known.values() if each.modelscope == repo), None)
