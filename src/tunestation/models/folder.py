"""What a folder must hold to be a model that transformers loads without running anybody's code. Reads headers, never weights."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

from tunestation.errors import Problem

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
"""The names under which transformers looks for safetensors weights."""
INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
OTHERS = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*")
LONGEST_HEADER = 100_000_000
"""Bytes; the limit that the safetensors format itself sets."""


def is_weight(name: str) -> bool:
    """Whether `name` is a file of safetensors weights that transformers reads."""
    return any(fnmatch(name, pattern) for pattern in WEIGHTS)


def is_model_file(name: str) -> bool:
    """Whether the file `name` at the top of a model folder counts: configuration, weights, tokenizer, chat template, licence."""
    if name.endswith(".index.json"):
        return name == INDEX
    return is_weight(name) or any(fnmatch(name, pattern) for pattern in OTHERS)


def model_files(folder: Path) -> list[Path]:
    """The files of `folder` that count, sorted by name. Subfolders hold nothing that is loaded."""
    return sorted(path for path in folder.iterdir() if path.is_file() and is_model_file(path.name))


def check_model_folder(folder: Path, name: str) -> list[Problem]:
    """Everything that keeps `folder` from being trained; `name` stands for it in messages. Empty: it is fine."""
    if not folder.is_dir():
        return [Problem("is not a folder.", name, "Give the folder that holds config.json.")]
    return [
        *_config_problems(folder, name),
        *code_problems(folder, name),
        *_weight_problems(folder, name),
        *_tokenizer_problems(folder, name),
    ]


def code_problems(folder: Path, name: str) -> list[Problem]:
    """Python code in the folder, or a configuration that asks for some."""
    remedy = "Use a model or a revision that transformers knows by itself, without code of its own."
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    problems = [Problem(f"holds Python code ({_some(files)}), which Tunestation never runs.", name, remedy)] if files else []
    for config in ("config.json", "tokenizer_config.json"):
        wanted = _read(folder / config).get("auto_map")
        if wanted:
            what = f"asks for Python code (auto_map: {_some(_code_names(wanted))}), which Tunestation never runs."
            problems.append(Problem(what, f"{name}/{config}", remedy))
    return problems


def _code_names(auto_map: object) -> list[str]:
    """`{"AutoModel": "modeling_x.Model", "AutoTokenizer": ["tok_x.Slow", null]}` -> the files, named once."""
    values = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    flat = [item for value in values for item in (value if isinstance(value, list) else [value]) if item]
    return sorted({str(item).partition(".")[0] + ".py" for item in flat})


def _config_problems(folder: Path, name: str) -> list[Problem]:
    path, where = folder / "config.json", f"{name}/config.json"
    if not path.is_file():
        return [Problem("is missing: without it nobody knows the architecture.", where, "Copy it from where the weights came from.")]
    return [] if _read(path) else [Problem("is not a JSON object.", where, "Fetch or copy it again.")]


def _tokenizer_problems(folder: Path, name: str) -> list[Problem]:
    if any((folder / tokenizer).is_file() for tokenizer in TOKENIZERS):
        return []
    return [Problem(f"has no tokenizer ({', '.join(TOKENIZERS)}).", name, "Copy the tokenizer's files from the model they belong to.")]


def _weight_problems(folder: Path, name: str) -> list[Problem]:
    weights = [path for path in model_files(folder) if is_weight(path.name)]
    broken = [problem for path in weights if (problem := _truncation(path, f"{name}/{path.name}"))]
    if (folder / INDEX).is_file():
        return [*_index_problems(folder, name), *broken]
    if weights and not (folder / "model.safetensors").is_file():
        return [
            Problem(f"is missing, but there are shards ({_some([path.name for path in weights])}).", f"{name}/{INDEX}", "Copy it too."),
            *broken,
        ]
    return broken if weights else [_no_weights(folder, name)]


def _no_weights(folder: Path, name: str) -> Problem:
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        remedy = "Use a safetensors revision of this model, or convert it with transformers' save_pretrained."
        return Problem(f"has weights as pickles only ({_some(pickled)}), which can run code when read.", name, remedy)
    return Problem(f"has no weights ({' or '.join(WEIGHTS)}).", name, "Copy the safetensors files too.")


def _index_problems(folder: Path, name: str) -> list[Problem]:
    where = f"{name}/{INDEX}"
    weight_map = _read(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        return [Problem("names no weights: it has no 'weight_map'.", where, "Fetch or copy it again.")]
    shards = sorted(set(map(str, weight_map.values())))
    absent = [shard for shard in shards if Path(shard).name != shard or not (folder / shard).is_file()]
    return (
        [Problem(f"names {len(absent)} of {len(shards)} files that are absent: {_some(absent)}.", where, "Copy them too.")]
        if absent
        else []
    )


def _truncation(path: Path, where: str) -> Problem | None:
    """A safetensors file is 8 bytes of header length, the header (JSON), and tensors up to the largest `data_offsets`."""
    actual = path.stat().st_size
    expected = _expected_size(path)
    if expected is None:
        return Problem(f"is not a safetensors file, or its header is cut ({actual:,} bytes).", where, "Fetch or copy it again.")
    if expected != actual:
        return Problem(f"has {actual:,} bytes, but its header says {expected:,}: the copy is incomplete.", where, "Fetch or copy it again.")
    return None


def _expected_size(path: Path) -> int | None:
    """Bytes that the file must have by its own header; None when there is no readable header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= LONGEST_HEADER else b""
    try:
        tensors = json.loads(header)
        ends = [entry["data_offsets"][1] for key, entry in tensors.items() if key != "__metadata__"]
        return 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def _read(path: Path) -> dict:
    """The JSON object in `path`; empty when absent or not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _some(names: list[str]) -> str:
    """At most four of `names`, and how many more."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
