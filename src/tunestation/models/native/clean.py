"""A model that transformers carries, without what it does not need: pickled weights become safetensors, and no code is asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tunestation.models.folder import INDEX, is_weight, model_files
from tunestation.models.native.family import Vocabulary
from tunestation.models.native.vocabularies import save
from tunestation.models.shards import Shards, moved, weight_files, write_shards
from tunestation.models.vocabulary.sentencepiece import read_model
from tunestation.pipeline.files import read_json, write_json

BUFFERS = ("rotary_emb.inv_freq", "attn.masked_bias")
"""Ends of the names of tensors that old versions saved though nothing is learned in them."""
CONFIGURATIONS = ("config.json", "tokenizer_config.json")


def clean(source: Path, into: Path, max_bytes: int) -> dict[str, str]:
    """Write the model of `source` into `into`, ready to load; returns digests of the weight files that were written anew.

    Safetensors files are linked where the disk allows it.
    """
    weights = weight_files(source)
    shards = None if weights[0].suffix == ".safetensors" else Shards(source)  # refuses bad pickles before anything is written
    into.mkdir(parents=True, exist_ok=True)
    _copy_small(source, into)
    _write_tokenizer(source, into)
    if shards is None:
        _link([*weights, *(path for path in (source / INDEX,) if path.is_file())], into)
        return {}
    kept = [name for name in shards.names if not name.endswith(BUFFERS)]
    plan = [moved(name, shards.meta(name), lambda name=name: iter([shards.rows(name)])) for name in kept]
    return write_shards(plan, into, max_bytes, shards.release)


def _copy_small(source: Path, into: Path) -> None:
    for path in model_files(source):
        if path.name in CONFIGURATIONS:
            write_json(into / path.name, {key: value for key, value in read_json(path).items() if key != "auto_map"})
        elif not is_weight(path.name) and not path.name.endswith(".index.json"):
            shutil.copyfile(path, into / path.name)


def _link(files: Sequence[Path], into: Path) -> None:
    for path in files:
        target = into / path.name
        target.unlink(missing_ok=True)
        try:
            os.link(path.resolve(), target)  # the file itself: a link of a hub's cache leads nowhere from another folder
        except OSError:  # another disk, or one without links
            shutil.copyfile(path, target)


def can_link(folder: Path) -> bool:
    """Whether the disk of `folder` gives one file two names."""
    with TemporaryDirectory(prefix=".trying-", dir=folder) as scratch:
        try:
            (Path(scratch) / "file").touch()
            os.link(Path(scratch) / "file", Path(scratch) / "link")
        except OSError:
            return False
    return True


def _write_tokenizer(source: Path, into: Path) -> None:
    """Where only code of the repository's own would read the vocabulary: tokenizer.json, made from it."""
    path = source / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    if "auto_map" not in config or (source / "tokenizer.json").is_file() or not (source / "tokenizer.model").is_file():
        return
    save(
        _vocabulary(config, [piece.text for piece in read_model(source / "tokenizer.model").pieces]),
        source,
        config.get("chat_template"),
        into,
    )


def _vocabulary(config: dict, pieces: Sequence[str]) -> Vocabulary:
    """What tokenizer_config.json adds to the file: tokens at ids of the file are new names, others follow its last."""
    decoder = {int(number): token["content"] for number, token in config.get("added_tokens_decoder", {}).items()}
    texts = {kind: _text(config.get(f"{kind}_token")) for kind in ("bos", "eos", "pad", "unk")}
    return Vocabulary(
        "tokenizer.model",
        **texts,
        renamed={pieces[number]: text for number, text in decoder.items() if number < len(pieces) and pieces[number] != text},
        control=tuple(text for number, text in decoder.items() if number < len(pieces) and pieces[number] == text),
        added=tuple(decoder[number] for number in sorted(decoder) if number >= len(pieces)),
        begin=(texts["bos"],) if config.get("add_bos_token") else (),
    )


def _text(token: str | dict | None) -> str | None:
    return token["content"] if isinstance(token, dict) else token
