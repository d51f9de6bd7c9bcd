"""What a folder must hold to be a model that loads without running anybody's code. Reads headers, never weights. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from tunestation.errors import InputError, Problem, some
from tunestation.models.headers import AGAIN, Entry, entries
from tunestation.models.names import EMBEDDINGS, HEAD
from tunestation.models.native.family import Family
from tunestation.models.native.registry import NATIVE, UNMERGED, family_of, why_not

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
"""The names under which transformers looks for safetensors weights."""
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")
"""The names of weights in PyTorch's own format, which are rewritten as safetensors."""
PICKLE_INDEX = "pytorch_model.bin.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
LICENCES = ("LICENSE*", "NOTICE*")
OTHERS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", *LICENCES)


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


def licences(folder: Path) -> list[Path]:
    """The licence and the notices of a model, sorted: they go with what is made of it."""
    return sorted(path for path in folder.iterdir() if path.is_file() and _matches(path.name, LICENCES))


def stop_ids(folder: Path) -> list[int]:
    """Ids at which the generation_config.json of a model stops; some models name the end of a turn only there."""
    found = _read(folder / "generation_config.json").get("eos_token_id")
    return [number for number in (found if isinstance(found, list) else [found]) if number is not None]


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
    """What the small files tell before the weights are there: code that would be needed, what cannot be converted or merged."""
    family, config = family_in(folder), _read(folder / "config.json")
    if reason := UNMERGED.get(config.get("model_type")):
        what = f"has model_type '{config['model_type']}', which cannot be merged: {reason}."
        return [Problem(what, f"{name}/config.json", "Use a model that docs/models.md lists.")]
    if family:
        reason = family.obstacle(config)
        what = f"is a {family.name} model that cannot be converted: {reason}."
        return [Problem(what, f"{name}/config.json", "Use the family's plain model.")] if reason else []
    return [] if config.get("model_type") in NATIVE else _code_problems(folder, name)


def pickle_problems(folder: Path, name: str, weights: list[str]) -> list[Problem]:
    """Pickled weights of an architecture that nobody here knows are refused; those of others are read as tensors only."""
    config = _read(folder / "config.json")
    if not _all_match(weights, PICKLES) or family_of(config) or config.get("model_type") in NATIVE | UNMERGED.keys():
        return []
    what = f"has weights as pickles only ({some(weights)}), which can run code when read, and {why_not(config)}."
    return [Problem(what, name, "Give a revision with safetensors: many repositories have one in a branch or pull request (refs/pr/1).")]


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
    problems = [Problem(f"holds Python code ({some(files)}), which Tunestation never runs; {why}.", name, remedy)] if files else []
    for config, wanted in _asked_code(folder).items():
        what = f"asks for Python code (auto_map: {some(wanted)}), which Tunestation never runs; {why}."
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
    return [] if _read(path) else [Problem("is not a JSON object.", where, AGAIN)]


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
    pickles = _matches(weights[0].name, PICKLES)
    index, single = (PICKLE_INDEX, "pytorch_model.bin") if pickles else (INDEX, "model.safetensors")
    held, broken = ({}, []) if pickles else _headers(weights, name)  # a pickle's own checks come when it is read
    if (folder / index).is_file():
        broken = [*_index_problems(folder, index, name, held), *broken]
    elif not (folder / single).is_file():
        shards = some([path.name for path in weights])
        broken = [Problem(f"is missing, but there are shards ({shards}).", f"{name}/{index}", "Copy it too."), *broken]
    return broken or list(_vocabulary_problems(folder, name, held))


def _headers(weights: list[Path], name: str) -> tuple[dict[str, dict[str, Entry]], list[Problem]]:
    """(file -> its tensors, files that are none or are cut)."""
    held, broken = {}, []
    for path in weights:
        try:
            held[path.name] = entries(path, f"{name}/{path.name}")
        except InputError as error:
            broken += error.problems
    return held, broken


def _index_problems(folder: Path, index: str, name: str, held: dict[str, dict[str, Entry]]) -> list[Problem]:
    """Of an index that names nothing, files that are absent, or weights that its file (if it is one of `held`) does not hold."""
    where = f"{name}/{index}"
    weight_map = _read(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        return [Problem("names no weights: it has no 'weight_map'.", where, AGAIN)]
    shards = sorted(set(map(str, weight_map.values())))
    absent = [shard for shard in shards if Path(shard).name != shard or not (folder / shard).is_file()]
    if absent:
        return [Problem(f"names {len(absent)} of {len(shards)} files that are absent: {some(absent)}.", where, "Copy them too.")]
    elsewhere = sorted(f"{weight} in {shard}" for weight, shard in weight_map.items() if weight not in held.get(shard, weight_map))
    what = f"names {len(elsewhere)} weights that are not where it says: {some(elsewhere)}."
    return [Problem(what, where, "Fetch or copy index and files again, all of one revision.")] if elsewhere else []


def _vocabulary_problems(folder: Path, name: str, held: dict[str, dict[str, Entry]]) -> Iterator[Problem]:
    """Whether embedding and head have the rows that config.json says; a family that is converted is checked then."""
    wanted = _read(folder / "config.json").get("vocab_size")
    if family_in(folder) or wanted is None:
        return
    for file, tensors in held.items():
        for weight in (*EMBEDDINGS, HEAD):
            if weight in tensors and tensors[weight].shape[:1] != (wanted,):
                what = f"holds {weight} as {list(tensors[weight].shape)}, but the vocab_size in config.json is {wanted}."
                yield Problem(what, f"{name}/{file}", "Fetch it again, or copy all files of one revision.")


def _read(path: Path) -> dict:
    """The JSON object in `path`; empty when absent or not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
