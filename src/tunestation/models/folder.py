"""What a folder must hold to be a model that loads without running anybody's code. Reads headers, never weights. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from tunestation.errors import Problem
from tunestation.models.native.family import Family
from tunestation.models.native.registry import NATIVE, family_of, why_not

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
"""The names under which transformers looks for safetensors weights."""
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")
"""The names of weights in PyTorch's own format, which are rewritten as safetensors."""
PICKLE_INDEX = "pytorch_model.bin.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
OTHERS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "LICENSE*", "NOTICE*")
LONGEST_HEADER = 100_000_000
"""Bytes; the limit that the safetensors format itself sets."""


def is_weight(name: str) -> bool:
    """Whether `name` is a file of weights, safetensors or pickled."""
    return _matches(name, (*WEIGHTS, *PICKLES))


def files_that_count(names: Iterable[str]) -> list[str]:
    """Of the files at the top of a model folder those that are read, sorted: pickled weights only where there are no others."""
    names = sorted(names)
    pickled = not any(_matches(name, WEIGHTS) for name in names)
    weights, index = (PICKLES, PICKLE_INDEX) if pickled else (WEIGHTS, INDEX)
    return [name for name in names if (name == index if name.endswith(".index.json") else _matches(name, (*weights, *OTHERS)))]


def model_files(folder: Path) -> list[Path]:
    """The files of `folder` that count, sorted by name. Subfolders hold nothing that is loaded."""
    return [folder / name for name in files_that_count(path.name for path in folder.iterdir() if path.is_file())]


def family_in(folder: Path) -> Family | None:
    """The family that the model of `folder` has to be converted from."""
    return family_of(_read(folder / "config.json"))


def needs_conversion(folder: Path) -> bool:
    """Whether the model has to be rewritten before it is loaded: another architecture, pickled weights, or code asked for."""
    pickled = any(_matches(path.name, PICKLES) for path in model_files(folder))
    return bool(family_in(folder) or pickled or _asked_code(folder) or _python_files(folder))


def check_model_folder(folder: Path, name: str) -> list[Problem]:
    """Everything that keeps `folder` from being trained; `name` stands for it in messages. Empty: it is fine."""
    if not folder.is_dir():
        return [Problem("is not a folder.", name, "Give the folder that holds config.json.")]
    return [
        *_config_problems(folder, name),
        *early_problems(folder, name),
        *_weight_problems(folder, name),
        *_tokenizer_problems(folder, name),
    ]


def early_problems(folder: Path, name: str) -> list[Problem]:
    """What the small files tell before the weights are there: code that would be needed, a variant that cannot be converted."""
    family = family_in(folder)
    if family:
        reason = family.obstacle(_read(folder / "config.json"))
        what = f"is a {family.name} model that cannot be converted: {reason}."
        return [Problem(what, f"{name}/config.json", "Use the family's plain model.")] if reason else []
    return [] if _known(folder) else _code_problems(folder, name)


def pickle_problems(folder: Path, name: str, weights: list[str]) -> list[Problem]:
    """Pickled weights of an architecture that nobody here knows are refused; those of others are read as tensors only."""
    if not _all_match(weights, PICKLES) or family_in(folder) or _known(folder):
        return []
    what = f"has weights as pickles only ({_some(weights)}), which can run code when read, and {why_not(_read(folder / 'config.json'))}."
    return [Problem(what, name, "Give a revision with safetensors: many repositories have one in a branch or pull request (refs/pr/1).")]


def _known(folder: Path) -> bool:
    return _read(folder / "config.json").get("model_type") in NATIVE


def _python_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))


def _asked_code(folder: Path) -> dict[str, list[str]]:
    """Configuration file -> the files of code that it asks for."""
    asked = {config: _read(folder / config).get("auto_map") for config in ("config.json", "tokenizer_config.json")}
    return {config: _code_names(wanted) for config, wanted in asked.items() if wanted}


def _code_problems(folder: Path, name: str) -> list[Problem]:
    """Python code in the folder, or a configuration that asks for some, of a model that is not known without it."""
    remedy = "Use a model that docs/models.md lists, or a revision that transformers knows by itself."
    why, files = why_not(_read(folder / "config.json")), _python_files(folder)
    problems = [Problem(f"holds Python code ({_some(files)}), which Tunestation never runs; {why}.", name, remedy)] if files else []
    for config, wanted in _asked_code(folder).items():
        what = f"asks for Python code (auto_map: {_some(wanted)}), which Tunestation never runs; {why}."
        problems.append(Problem(what, f"{name}/{config}", remedy))
    return problems


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _all_match(names: list[str], patterns: Iterable[str]) -> bool:
    return bool(names) and all(_matches(name, patterns) for name in names)


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
    family = family_in(folder)
    wanted = (family.vocabulary(_read(folder / "config.json")).file,) if family else TOKENIZERS
    if any((folder / tokenizer).is_file() for tokenizer in wanted):
        return []
    return [Problem(f"has no tokenizer ({', '.join(wanted)}).", name, "Copy the tokenizer's files from the model they belong to.")]


def _weight_problems(folder: Path, name: str) -> list[Problem]:
    weights = [path for path in model_files(folder) if is_weight(path.name)]
    if not weights:
        return [Problem(f"has no weights ({' or '.join(WEIGHTS)}).", name, "Copy the safetensors files too.")]
    pickled = pickle_problems(folder, name, [path.name for path in weights])
    if pickled:
        return pickled
    index, single = (PICKLE_INDEX, "pytorch_model.bin") if _matches(weights[0].name, PICKLES) else (INDEX, "model.safetensors")
    broken = [problem for path in weights if (problem := _truncation(path, f"{name}/{path.name}"))]
    if (folder / index).is_file():
        return [*_index_problems(folder, index, name), *broken]
    if not (folder / single).is_file():
        shards = _some([path.name for path in weights])
        return [Problem(f"is missing, but there are shards ({shards}).", f"{name}/{index}", "Copy it too."), *broken]
    return broken


def _index_problems(folder: Path, index: str, name: str) -> list[Problem]:
    where = f"{name}/{index}"
    weight_map = _read(folder / index).get("weight_map")
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
    if path.suffix != ".safetensors":
        return None  # a pickle's own checks come when it is read
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
