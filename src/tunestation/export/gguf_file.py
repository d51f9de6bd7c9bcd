"""GGUF, the file that llama.cpp and what builds on it read, from a merged folder of the Llama family.

Names and metadata are those of the `gguf` package. llama.cpp turns pairs of neighbours where transformers turns halves of a head,
so the rows of query and key change places for its architecture `llama`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from tunestation.errors import InputError, Problem
from tunestation.models.shards import Shards
from tunestation.pipeline.files import read_json

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""model_type -> llama.cpp's architecture."""
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
WORDS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
}
"""How a tokenizer cuts text into words -> llama.cpp's name for it."""


def check(config: dict, tokenizer: dict) -> None:
    """Whether a model with this config.json and tokenizer.json can be written. Raises InputError with all that is in the way."""
    remedy, problems = "Leave export.gguf out.", []
    if not find_spec("gguf"):
        problems.append(Problem("export.gguf needs the package gguf.", "", "Install it: pip install gguf"))
    if config["model_type"] not in ARCHITECTURES:
        what = f"export.gguf knows {', '.join(ARCHITECTURES)}, but the model is of type {config['model_type']}."
        problems.append(Problem(what, "", remedy))
    if _rope(config).get("rope_type", "default") not in ("default", "dynamic"):
        problems.append(Problem(f"export.gguf cannot express the positions '{_rope(config)['rope_type']}' of this model.", "", remedy))
    if _pre_tokenizer(tokenizer) is None:
        what = "export.gguf: llama.cpp cuts text into words in fixed ways, and this tokenizer's is none of those that are known here."
        problems.append(Problem(what, "", remedy))
    if problems:
        raise InputError(problems=problems)


def _pre_tokenizer(tokenizer: dict) -> str | None:
    """llama.cpp's name of the way in which a byte-level BPE cuts text into words."""
    found = tokenizer["pre_tokenizer"] or {}
    if tokenizer["model"]["type"] != "BPE" or tokenizer["normalizer"] not in (None, {"type": "NFC"}):
        return None
    if found == GPT2:
        return "gpt-2"
    parts = found.get("pretokenizers", [])
    kinds = [part["type"] for part in parts]
    return WORDS.get(parts[0]["pattern"].get("Regex")) if kinds == ["Split", "ByteLevel"] else None


def _rope(config: dict) -> dict:
    """Base and kind of the rotary positions, wherever the configuration keeps them."""
    plain = {"rope_theta": config.get("rope_theta", 10000.0)}
    scaling = config.get("rope_scaling") or {}
    return plain | {"rope_type": scaling.get("rope_type", scaling.get("type", "default"))} | (config.get("rope_parameters") or {})


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
    for own in shards.names:
        meta = shards.meta(own)
        kept = _kind(meta, kind)
        shape, dtype = _layout(meta, kept)
        size = int(np.prod(shape)) * dtype.itemsize
        writer.add_tensor_info(names.get_name(own, try_suffixes=(".weight", ".bias")), shape, dtype, size, _raw(kept))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for own in shards.names:
        weight = _in_order(own, shards.read(own).float(), config) if arch == "llama" else shards.read(own).float()
        writer.write_tensor_data(_array(weight, _kind(weight, kind), own))
        shards.release()
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
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if kind == "q8_0" else gguf.LlamaFileType.MOSTLY_F16)


def _vocabulary(writer, folder: Path, size: int) -> None:
    """Tokens, merges, stop token and chat template; ids without a token are named and never produced."""
    import gguf
    from transformers import AutoTokenizer

    file = read_json(folder / "tokenizer.json")
    tokens = {number: (text, gguf.TokenType.NORMAL) for text, number in file["model"]["vocab"].items()}
    for token in file["added_tokens"]:
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        tokens[token["id"]] = (token["content"], kind)
    every = [tokens.get(number, (f"[PAD{number}]", gguf.TokenType.UNUSED)) for number in range(size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(file))
    writer.add_token_list([text for text, _ in every])
    writer.add_token_types([kind for _, kind in every])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in file["model"]["merges"]])
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(False)  # the chat template writes it
    writer.add_chat_template(tokenizer.chat_template)
