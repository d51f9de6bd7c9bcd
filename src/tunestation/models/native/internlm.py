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
    chat=Chat("internlm_chat", lambda files: 103028 in _ids(files["generation"].get("eos_token_id")), ("<eoa>",)),
)


def _ids(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [value]
