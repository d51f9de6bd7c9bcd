"""InternLM2 and 2.5 to Llama: packed wqkv in groups of query heads, w1/w3/w2, dynamic rope.

The mapping is that of InternLM's own tools/convert2llama.py, with biases allowed.
"""

from __future__ import annotations

from tunestation.models.native.family import ATTENTION, Chat, Family, Line, Rows, Vocabulary, same_shape
from tunestation.models.native.llama import llama_config

TURNS = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>")
"""Ids 92538 to 92543."""
RENAMED = {f"[UNUSED_TOKEN_{number}]": turn for number, turn in enumerate(TURNS, 141)}
"""How the vocabulary file spells them; the chat models' tokenizer_config.json renames them."""


def table(config: dict) -> tuple[Line, ...]:
    """wqkv holds, for each key head, its query heads, the key head and the value head."""
    heads, kv = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    head = config["hidden_size"] // heads
    packed = Rows(kv, (heads // kv * head, head, head))
    return (
        Line("model.layers.*.attention.wqkv", ATTENTION, packed),
        *same_shape(
            {
                "model.tok_embeddings": "model.embed_tokens",
                "model.layers.*.attention.wo": "model.layers.*.self_attn.o_proj",
                "model.layers.*.feed_forward.w1": "model.layers.*.mlp.gate_proj",
                "model.layers.*.feed_forward.w3": "model.layers.*.mlp.up_proj",
                "model.layers.*.feed_forward.w2": "model.layers.*.mlp.down_proj",
                "model.layers.*.attention_norm": "model.layers.*.input_layernorm",
                "model.layers.*.ffn_norm": "model.layers.*.post_attention_layernorm",
                "model.norm": "model.norm",
                "output": "lm_head",
            }
        ),
    )


def _config(config: dict, biased: bool) -> dict:
    scaling = config.get("rope_scaling")
    return llama_config(config, biased, config.get("rope_theta", 10000), scaling and scaling["type"], scaling and scaling["factor"])


FAMILY = Family(
    name="internlm2",
    target="llama",
    is_theirs=lambda config: config.get("model_type") == "internlm2",
    layers=lambda config: config["num_hidden_layers"],
    table=table,
    config=_config,
    vocabulary=lambda config: Vocabulary("tokenizer.model", 1, 2, 2, 0, renamed=RENAMED, begin=("<s>",)),
    ignored=("rotary_emb.inv_freq",),
    chat=lambda files: Chat("internlm2_chat", ("<|im_end|>",)) if "<|im_end|>" in str(files["tokenizer"]) else None,
    version=2,
)
