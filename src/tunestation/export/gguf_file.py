"""GGUF, the file that llama.cpp and what builds on it read, from a merged folder of the Llama family.

Names and metadata are those of the `gguf` package. llama.cpp turns pairs of neighbours where transformers turns halves of a head,
so the rows of query and key change places for its architecture `llama`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from tunestation.errors import InputError, Problem
from tunestation.export.gguf_vocabulary import begins_with_text, scores, way_of
from tunestation.models.native.clean import BUFFERS
from tunestation.models.shards import Shards
from tunestation.pipeline.files import read_json

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""model_type -> llama.cpp's architecture."""
BYTE = re.compile("<0x[0-9A-F]{2}>")
"""How a SentencePiece vocabulary spells a byte."""
ROPES = {
    "default": set(),
    "dynamic": {"factor", "original_max_position_embeddings"},
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow"},
}
"""Kind of rotary positions -> its options that can be written. `dynamic` changes nothing within the context."""


def check(config: dict, tokenizer: dict, rendered: str) -> None:
    """Whether a model with this config.json and tokenizer.json can be written; `rendered` is any conversation by its chat template.

    Raises InputError with all that is in the way.
    """
    remedy, problems = "Leave export.gguf out.", []
    if not find_spec("gguf"):
        problems.append(Problem("export.gguf needs the package gguf.", "", "Install it: pip install gguf"))
    if config["model_type"] not in ARCHITECTURES:
        what = f"export.gguf knows {', '.join(ARCHITECTURES)}, but the model is of type {config['model_type']}."
        problems.append(Problem(what, "", remedy))
    problems += [Problem(f"export.gguf cannot express {reason}.", "", remedy) for reason in _strange_rope(config)]
    try:
        way_of(tokenizer)
        if begins_with_text(tokenizer, rendered):
            problems.append(Problem("export.gguf: llama.cpp would not put a space in front of this template's first word.", "", remedy))
    except ValueError as error:
        problems.append(Problem(f"export.gguf cannot write this tokenizer: {error}.", "", remedy))
    if problems:
        raise InputError(problems=problems)


def _strange_rope(config: dict) -> Iterator[str]:
    rope = _rope(config)
    kind = rope["rope_type"]
    options = {name for name, value in rope.items() if value is not None} - {"rope_theta", "rope_type", "type"}
    if kind not in ROPES:
        yield f"the positions '{kind}' of this model"
    elif kind == "llama3" and ARCHITECTURES.get(config["model_type"], "llama") != "llama":
        yield f"the positions 'llama3' in a model of type {config['model_type']}"
    elif strange := sorted(options - ROPES[kind]):
        yield f"the option {strange[0]} of the positions '{kind}' of this model"


def _rope(config: dict) -> dict:
    """Base, kind and options of the rotary positions, wherever the configuration keeps them."""
    scaling = (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    length = {"original_max_position_embeddings": config["max_position_embeddings"]} if kind == "yarn" else {}
    return {"rope_theta": config.get("rope_theta", 10000.0), "rope_type": kind} | length | scaling


def write(folder: Path, path: Path, kind: str, name: str) -> None:
    """Write the merged model of `folder` to `path`; matrices in `kind`, f16 or q8_0, the rest in float32. One tensor in memory."""
    import gguf

    config = read_json(folder / "config.json")
    arch = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path.with_name(path.name + ".part"), arch)
    _metadata(writer, config, name, kind)
    _vocabulary(writer, folder, config["vocab_size"])
    shards = Shards(folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config["num_hidden_layers"])
    stored = [own for own in shards.names if not own.endswith(BUFFERS)]  # files of Llama 2 hold what is computed from config.json
    for own in stored:
        meta = shards.meta(own)
        kept = _kind(meta, kind)
        shape, dtype = _layout(meta, kept)
        size = int(np.prod(shape)) * dtype.itemsize
        writer.add_tensor_info(names.get_name(own, try_suffixes=(".weight", ".bias")), shape, dtype, size, _raw(kept))
    divisors = _frequencies(config)
    if divisors is not None:
        writer.add_tensor_info("rope_freqs.weight", divisors.shape, divisors.dtype, divisors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for own in stored:
        weight = _in_order(own, shards.read(own).float(), config) if arch == "llama" else shards.read(own).float()
        writer.write_tensor_data(_array(weight, _kind(weight, kind), own))
        shards.release()
    if divisors is not None:
        writer.write_tensor_data(divisors)
    writer.close()
    path.with_name(path.name + ".part").rename(path)


def _kind(weight: torch.Tensor, kind: str) -> str:
    """Vectors stay in float32; a matrix whose rows are no multiple of a block of 32 stays in f16."""
    if weight.ndim < 2:
        return "f32"
    return kind if weight.shape[1] % 32 == 0 else "f16"


def _raw(kind: str) -> int | None:
    import gguf

    return gguf.GGMLQuantizationType.Q8_0 if kind == "q8_0" else None


def _layout(weight: torch.Tensor, kind: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype as written; q8_0 stores 32 numbers in 34 bytes."""
    if kind == "q8_0":
        return (weight.shape[0], weight.shape[1] // 32 * 34), np.dtype(np.uint8)
    return tuple(weight.shape), np.dtype(np.float16 if kind == "f16" else np.float32)


def _array(weight: torch.Tensor, kind: str, name: str) -> np.ndarray:
    import gguf

    if kind == "q8_0":
        return gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0)
    if kind == "f16" and weight.abs().max() > np.finfo(np.float16).max:
        raise InputError(f"{name} holds numbers that float16 cannot.", "export.gguf", "Choose q8_0.")
    return weight.numpy().astype(np.float16 if kind == "f16" else np.float32)


def _in_order(name: str, weight: torch.Tensor, config: dict) -> torch.Tensor:
    """Rows of query and key: the two halves of a head, which rotate together, are interleaved."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config.get("num_key_value_heads") or config["num_attention_heads"]}
    count = heads.get(name.split(".")[-2])
    if count is None:
        return weight
    return weight.view(count, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape).contiguous()


def _metadata(writer, config: dict, name: str, kind: str) -> None:
    import gguf

    heads, rope = config["num_attention_heads"], _rope(config)
    size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_name(name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rope["rope_theta"])
    _scaling(writer, rope)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if kind == "q8_0" else gguf.LlamaFileType.MOSTLY_F16)


def _scaling(writer, rope: dict) -> None:
    import gguf

    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
        writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)


def _frequencies(config: dict) -> np.ndarray | None:
    """By what llama3's scaling divides each frequency, float32 [head / 2] (as in `_compute_llama3_parameters` of transformers)."""
    rope, size = _rope(config), config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if rope["rope_type"] != "llama3":
        return None
    turns = rope["original_max_position_embeddings"] * rope["rope_theta"] ** (-np.arange(0, size, 2) / size) / (2 * np.pi)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _vocabulary(writer, folder: Path, size: int) -> None:
    """Tokens, merges, stop token and chat template; ids without a token are named and never produced."""
    from transformers import AutoTokenizer

    file = read_json(folder / "tokenizer.json")
    way, special = way_of(file), {token["content"]: token["special"] for token in file["added_tokens"]}
    tokens = {number: text for text, number in file["model"]["vocab"].items()}
    tokens |= {token["id"]: token["content"] for token in file["added_tokens"]}
    every = [tokens.get(number, f"[PAD{number}]") for number in range(size)]
    kinds = [_kind_of(text, number in tokens, special.get(text), file["model"]) for number, text in enumerate(every)]
    writer.add_tokenizer_model(way.model)
    writer.add_tokenizer_pre(way.pre)
    writer.add_token_list(every)
    writer.add_token_types(kinds)
    if way.model == "llama":
        found = scores(file["model"])
        writer.add_token_scores([found.get(text, 0.0) for text in every])
        writer.add_add_space_prefix(way.space_prefix)
        writer.add_unk_token_id(every.index(file["model"]["unk_token"]))
    else:
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in file["model"]["merges"]])
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(False)  # the chat template writes it
    writer.add_chat_template(tokenizer.chat_template)


def _kind_of(text: str, known: bool, special: bool | None, model: dict) -> int:
    """The type of a token; `special` is None for one that was not added to the vocabulary."""
    import gguf

    if not known:
        return gguf.TokenType.UNUSED
    if model.get("byte_fallback") and text == model["unk_token"]:
        return gguf.TokenType.UNKNOWN
    if special is not None:
        return gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    return gguf.TokenType.BYTE if model.get("byte_fallback") and BYTE.fullmatch(text) else gguf.TokenType.NORMAL
