"""Baichuan and Baichuan2: packed W_pack. The 7B models rotate positions and become Llamas; the 13B models use ALiBi instead."""

from __future__ import annotations

from tunestation.models.native.family import ATTENTION, Chat, Family, Line, Rows, Vocabulary
from tunestation.models.native.llama import NAMES, llama_config

ALIBI = "tunestation_alibi"
"""model_type of our own class, which `models/alibi.py` registers."""
SECOND_VOCABULARY = 125_696
"""Entries of Baichuan2's vocabulary. Only Baichuan2 divides the rows of its head by their length."""


def second(config: dict) -> bool:
    """Whether this is Baichuan2."""
    return config["vocab_size"] == SECOND_VOCABULARY


def table(config: dict) -> tuple[Line, ...]:
    """W_pack holds all queries, then all keys, then all values."""
    hidden = config["hidden_size"]
    same = tuple(Line(name, (name,)) for name in NAMES if name not in (*ATTENTION, "lm_head"))
    head = Line("lm_head", ("lm_head",), change="unit_rows" if second(config) else "")
    return (*same, head, Line("model.layers.*.self_attn.W_pack", ATTENTION, Rows(1, (hidden,) * 3)))


def _rotates(config: dict) -> bool:
    """The configuration of a 13B model knows no last position: ALiBi has none."""
    return "max_position_embeddings" in config


def _alibi_config(config: dict, biased: bool) -> dict:
    positions = {"max_position_embeddings": config["model_max_length"]}
    return llama_config(config | positions, biased, 10000) | {"architectures": ["AlibiForCausalLM"]}


def _vocabulary(config: dict) -> Vocabulary:
    turns = ("<reserved_106>", "<reserved_107>") if second(config) else ("<reserved_102>", "<reserved_103>")
    return Vocabulary("tokenizer.model", 1, 2, config.get("pad_token_id", 0), 0, control=turns)


def _family(name: str, target: str, rotates: bool, second_generation: bool, config: object) -> Family:
    def is_theirs(found: dict) -> bool:
        return (
            found.get("model_type") == "baichuan"
            and "vocab_size" in found
            and (_rotates(found), second(found)) == (rotates, second_generation)
        )

    template = "baichuan2_chat" if second_generation else "baichuan_chat"
    return Family(
        name=name,
        target=target,
        is_theirs=is_theirs,
        layers=lambda found: found["num_hidden_layers"],
        table=table,
        config=config,
        vocabulary=_vocabulary,
        ignored=("rotary_emb.inv_freq",),
        chat=lambda files: Chat(template) if "user_token_id" in files["generation"] else None,
        version=2,
    )


def _rope_config(config: dict, biased: bool) -> dict:
    return llama_config(config, biased, 10000)


FAMILIES = (
    _family("baichuan-7b", "llama", True, False, _rope_config),
    _family("baichuan2-7b", "llama", True, True, _rope_config),
    _family("baichuan-13b", ALIBI, False, False, _alibi_config),
    _family("baichuan2-13b", ALIBI, False, True, _alibi_config),
)
