"""What fetch does with a 7B-shaped InternLM2 folder of random weights, against plain copying of the same bytes.

    python bench/convert.py [--root FOLDER] [--layers 32] [--out FILE.json]

fetch hashes the source, converts it, and knows the digests of the result. The copy is shutil.copytree, without any digest. Both
begin with the source out of the page cache and end when every byte is on the disk. Each runs in a process of its own, whose
largest resident memory is read (mapped pages of files count). Needs twice the model's size on the disk of --root.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from tunestation.fetching.conversion import converted
from tunestation.fetching.manifest import FetchedModel
from tunestation.models.folder import model_files
from tunestation.models.shards import Planned, write_shards
from tunestation.pipeline.digest import Digests
from tunestation.pipeline.volumes import Volumes

CONFIG = {
    "model_type": "internlm2",
    "vocab_size": 92544,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
}
"""InternLM2-7B."""
WAYS = ("copy", "convert")


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Every tensor of the family's layout."""
    hidden, ffn, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    packed = hidden + 2 * hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    layer = {"attention.wqkv": (packed, hidden), "attention.wo": (hidden, hidden)}
    layer |= {"feed_forward.w1": (ffn, hidden), "feed_forward.w3": (ffn, hidden), "feed_forward.w2": (hidden, ffn)}
    layer |= {"attention_norm": (hidden,), "ffn_norm": (hidden,)}
    found = {"model.tok_embeddings.weight": (vocabulary, hidden)}
    for n in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{n}.{name}.weight": shape for name, shape in layer.items()}
    return found | {"model.norm.weight": (hidden,), "output.weight": (vocabulary, hidden)}


def make(folder: Path, config: dict) -> int:
    """Write the folder; returns the bytes of its weights: finite random numbers, the same ones in every matrix."""
    from sentencepiece import SentencePieceTrainer

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    sentences = iter(Path(__file__).read_text(encoding="utf-8").splitlines())
    options = {"model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "minloglevel": 2}
    SentencePieceTrainer.train(sentence_iterator=sentences, model_prefix=str(folder / "tokenizer"), **options)

    largest = max(math.prod(shape) for shape in shapes(config).values())
    numbers = torch.randint(0, 0x4000, (largest,), dtype=torch.int16).view(torch.bfloat16)

    def load(shape: tuple[int, ...]) -> torch.Tensor:
        return numbers[: math.prod(shape)].view(shape)

    plan = [
        Planned(name, torch.empty(shape, dtype=torch.bfloat16, device="meta"), lambda shape=shape: load(shape))
        for name, shape in shapes(config).items()
    ]
    write_shards(plan, folder, 2 * 10**9)
    return sum(tensor.meta.nbytes for tensor in plan)


def forget(folder: Path) -> None:
    """Write everything out and drop the files' pages from the cache."""
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def work(way: str, source: Path, into: Path) -> dict:
    """Do it in this process: seconds until all is on the disk, and the largest resident memory so far."""
    begin = time.monotonic()
    if way == "copy":
        shutil.copytree(source, into)
    else:
        fetch(source, into)
    for path in (path for path in into.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    seconds = time.monotonic() - begin
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())  # getrusage would count this one's parent
    return {"seconds": seconds, "peak_bytes": int(peak[1]) * 1024}


def fetch(source: Path, into: Path) -> None:
    """As the stage of that name, with nothing known from earlier."""
    volumes, digests = Volumes(into, into, source.parent, into / "cache"), Digests(into / "cache")
    files = {path.name: sha256 for path, sha256 in digests.of_all(model_files(source)).items()}
    converted(FetchedModel(f"recipe:{source.name}", None, None, files), volumes, digests)


def measured(way: str, source: Path, into: Path) -> dict:
    """`work` in a process of its own."""
    shutil.rmtree(into, ignore_errors=True)
    forget(source)
    command = [sys.executable, __file__, "--work", way, str(source), str(into)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(root: Path, layers: int, rounds: int) -> dict:
    """Both ways, in turn, `rounds` times; the quicker round of each counts."""
    source = root / "source"
    size = make(source, CONFIG | {"num_hidden_layers": layers})
    every = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS if number % 2 == 0 else WAYS[::-1]:
            every[way].append(measured(way, source, root / "into"))
    copy, converted = (min(run["seconds"] for run in every[way]) for way in WAYS)
    return {
        "bytes": size,
        "layers": layers,
        "copy_seconds": round(copy, 1),
        "convert_seconds": round(converted, 1),
        "ratio": round(converted / copy, 2),
        "convert_peak_gb": round(max(run["peak_bytes"] for run in every["convert"]) / 1e9, 2),
        "runs": every,
        "load": os.getloadavg(),
        "machine": {"cpus": os.cpu_count(), "cpu": platform.processor() or platform.machine(), "torch": torch.__version__},
    }


def main() -> None:
    """Parse, measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=None, help="where the folders are made and removed again")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", nargs=3, metavar=("WAY", "SOURCE", "INTO"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        way, source, into = given.work
        print(json.dumps(work(way, Path(source), Path(into))))
        return
    with tempfile.TemporaryDirectory(dir=given.root) as folder:
        result = measure(Path(folder), given.layers, given.rounds)
    text = json.dumps(result, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
