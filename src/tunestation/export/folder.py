"""What lies beside the weights of a merged model, so that it answers and stops elsewhere as it does here."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from tunestation.models.folder import licences, stop_ids
from tunestation.models.tokenizer_files import save_tokenizer
from tunestation.pipeline.files import read_json, write_json


def write_config(source: Path, output: Path, dtype: str, tied: bool) -> None:
    """config.json of the folder `source` for weights of `dtype`, without paths of this machine."""
    config = read_json(source / "config.json")
    dropped = ("_name_or_path", "torch_dtype")
    kept = {name: value for name, value in config.items() if name not in dropped}
    write_json(output / "config.json", kept | {"dtype": dtype, "use_cache": True, "tie_word_embeddings": tied})


def write_tokenizer(prepared: Path, base: Path | None, generation: dict, output: Path) -> None:
    """The tokenizer with its chat template, and how the folder answers where nobody says otherwise."""
    tokenizer = AutoTokenizer.from_pretrained(prepared / "tokenizer", local_files_only=True)
    save_tokenizer(tokenizer, output)
    stops = {number for number in (stop_ids(base) if base else ()) if number < len(tokenizer)}
    generation_config(generation, tokenizer, stops).save_pretrained(output)


def copy_licences(base: Path, output: Path) -> list[str]:
    """Returns the names of the files."""
    found = licences(base)
    for path in found:
        shutil.copyfile(path, output / path.name)
    return [path.name for path in found]


def generation_config(wanted: dict, tokenizer: PreTrainedTokenizerBase, stops: set[int]) -> GenerationConfig:
    """Settings of the recipe; an answer stops at the template's stop token, or at one of `stops`."""
    sample = {name: wanted[name] for name in ("temperature", "top_p", "top_k")} if wanted["temperature"] else {}
    every = sorted({tokenizer.eos_token_id, *stops})
    return GenerationConfig(
        do_sample=bool(sample),
        **sample,
        repetition_penalty=wanted["repetition_penalty"],
        max_new_tokens=wanted["max_new_tokens"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=every if len(every) > 1 else every[0],
        pad_token_id=tokenizer.pad_token_id,
    )
