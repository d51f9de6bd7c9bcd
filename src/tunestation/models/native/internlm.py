"""InternLM of the first generation (7B, 20B) to Llama: the names agree, the biases and the rope need care."""

from __future__ import annotations

from tunestation.models.native.family import Chat, Family, Limit, Line, Vocabulary
from tunestation.models.native.llama import NAMES, llama_config


def _table(config: dict) -> tuple[Line, ...]:
    return tuple(Line(name, (name,)) for name in NAMES)


def _config(config: dict, biased: bool) -> dict:
    rotary = config.get("rotary") or {"base": 10000, "type": "origin"}
    dynamic = rotary["type"] == "dynamic"
    return llama_config(config, biased, rotary["base"], "dynamic" if dynamic else None, rotary.get("scaling_factor", 1.0))


def _limit(config: dict) -> Limit:
    why = "the original keeps keys unrotated in its cache and rotates them anew at every length, which Llama does not"
    return Limit(config.get("max_position_embeddings", 2048), why)


def _chat(files: dict) -> Chat | None:
    """Only the chat models stop at 103028, <eoa>."""
    stops = files["generation"].get("eos_token_id")
    return Chat("internlm_chat", ("<eoa>",)) if isinstance(stops, list) and 103028 in stops else None


FAMILY = Family(
    name="internlm",
    target="llama",
    is_theirs=lambda config: config.get("model_type") == "internlm",
    layers=lambda config: config["num_hidden_layers"],
    table=_table,
    config=_config,
    vocabulary=lambda config: Vocabulary("tokenizer.model", 1, 2, 2, 0, control=("<eoh>", "<eoa>"), begin=("<s>",)),
    ignored=("rotary_emb.inv_freq",),
    limit=_limit,
    chat=_chat,
    version=2,
)
