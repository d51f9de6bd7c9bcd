"""What architectures call the two weights that they may share. No torch here."""

from __future__ import annotations

from collections.abc import Container

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""The two weights that llama-like models tie: a head that is not in the files is the embedding."""
GPT_EMBEDDING = "transformer.wte.weight"
"""What StarCoder's architecture calls its embedding."""
EMBEDDINGS = (EMBEDDING, GPT_EMBEDDING)


def embedding_of(names: Container[str]) -> str:
    """What a model with these weights calls its embedding."""
    return GPT_EMBEDDING if GPT_EMBEDDING in names else EMBEDDING
