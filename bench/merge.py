"""Merging beside copying: seconds, and memory at its peak, for a random model of a real shape.

    python bench/merge.py [--shape 7b] [--rank 64] [--proof] [--scratch FOLDER] [--out bench/results/NAME.json]

Each measurement is a process of its own. Copying and merging take turns, and both count until the bytes are on the disk.
With --proof it is the proof that is measured instead, on 8 probes of 64 random tokens.
The scratch folder needs three times the model's size and is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "src"))

from tunestation.pipeline.machine import describe, peak_memory  # noqa: E402  found by the line above
from tunestation.pipeline.workers import Workers  # noqa: E402

SHAPES = {
    "7b": {"hidden": 4096, "ffn": 11008, "layers": 32, "vocabulary": 32000, "kv": 4096},
    "1b": {"hidden": 2048, "ffn": 8192, "layers": 16, "vocabulary": 128256, "kv": 512},
}
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def layer(shape: dict) -> dict[str, tuple[int, int]]:
    """Module -> [out, in] of one decoder layer of a Llama."""
    hidden, ffn, kv = shape["hidden"], shape["ffn"], shape["kv"]
    attention = {"q_proj": (hidden, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, hidden)}
    mlp = {"gate_proj": (ffn, hidden), "up_proj": (ffn, hidden), "down_proj": (hidden, ffn)}
    return {f"self_attn.{name}": size for name, size in attention.items()} | {f"mlp.{name}": size for name, size in mlp.items()}


def make(folder: Path, shape: dict, rank: int) -> None:
    """A base in bfloat16 with shards of 2 GB, and an adapter of every linear layer, whose values are random."""
    import torch
    from peft import LoraConfig

    from tunestation.models.shards import Planned, write_shards

    noise = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).bfloat16() / 50

    def fill(size: tuple[int, ...]) -> torch.Tensor:
        count = torch.Size(size).numel()
        return noise.repeat(count // len(noise) + 1)[:count].view(size)

    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape["vocabulary"], shape["hidden"])}
    for number in range(shape["layers"]):
        sizes |= {f"model.layers.{number}.{name}.weight": size for name, size in layer(shape).items()}
        sizes |= {f"model.layers.{number}.{name}.weight": (shape["hidden"],) for name in ("input_layernorm", "post_attention_layernorm")}
    sizes |= {"model.norm.weight": (shape["hidden"],), "lm_head.weight": (shape["vocabulary"], shape["hidden"])}
    planned = [Planned(name, torch.empty(size, dtype=torch.bfloat16, device="meta"), partial(fill, size)) for name, size in sizes.items()]
    for part in ("base", "adapter"):
        (folder / part).mkdir()
    write_shards(planned, folder / "base", 2 * 10**9)
    adapted = {name.removesuffix(".weight"): size for name, size in sizes.items() if name.split(".")[-2] in LINEARS}
    halves = {f"base_model.model.{name}.lora_A.weight": (rank, size[1]) for name, size in adapted.items()}
    halves |= {f"base_model.model.{name}.lora_B.weight": (size[0], rank) for name, size in adapted.items()}
    tensors = [Planned(name, torch.empty(size, dtype=torch.bfloat16, device="meta"), partial(fill, size)) for name, size in halves.items()]
    write_shards(tensors, folder / "adapter", 10**12)
    (folder / "adapter" / "model.safetensors").rename(folder / "adapter" / "adapter_model.safetensors")
    write_config(folder / "base", shape)
    LoraConfig(r=rank, lora_alpha=16, target_modules=list(LINEARS), task_type="CAUSAL_LM").save_pretrained(folder / "adapter")


def write_config(folder: Path, shape: dict) -> None:
    """What the proof builds the architecture from."""
    from transformers import LlamaConfig

    LlamaConfig(
        hidden_size=shape["hidden"],
        intermediate_size=shape["ffn"],
        num_hidden_layers=shape["layers"],
        vocab_size=shape["vocabulary"],
        num_attention_heads=shape["hidden"] // 128,
        num_key_value_heads=shape["kv"] // 128,
        dtype="bfloat16",
    ).save_pretrained(folder)


def copy(source: Path, output: Path) -> None:
    """What a merge is compared with."""
    for path in sorted(source.glob("model*")):
        shutil.copyfile(path, output / path.name)


def merge(source: Path, output: Path) -> None:
    """Base and adapter become one."""
    write(plan(Shards(source), Adapter(source.with_name("adapter")), False, torch.bfloat16), output, "2GB")


def prove(source: Path, output: Path) -> dict:
    """The proof of a merge that was made before: seconds, and what it found."""
    from dataclasses import asdict

    from tunestation.export import proof
    from tunestation.export.merging import as_stored

    config = json.loads((source / "config.json").read_text())
    shutil.copyfile(source / "config.json", output / "config.json")
    ids = torch.randint(config["vocab_size"], (proof.ROWS, proof.TOKENS), generator=torch.Generator().manual_seed(0))
    case = proof.Case(output, source, source.with_name("adapter"), False, torch.bfloat16, {"16bit": as_stored}, "16bit")
    start = time.monotonic()
    found = proof.prove(case, proof.Probes(ids, torch.ones_like(ids, dtype=torch.bool)), torch.device("cpu"))
    return {"seconds": round(time.monotonic() - start, 1), "merged": asdict(found.tuned), "base": asdict(found.base)}


def load_libraries() -> None:
    """What a merge imports; the seconds of that are not counted."""
    global torch, Adapter, plan, write, Shards
    import torch

    from tunestation.export.adapter import Adapter
    from tunestation.export.merging import plan, write
    from tunestation.models.shards import Shards


def measure(action: str, folder: Path) -> dict:
    """Seconds until all is on the disk, and the peak of resident memory, in a process of its own."""
    output = folder / "out"
    output.mkdir()
    said = subprocess.run([sys.executable, __file__, "--do", action, str(folder)], check=True, capture_output=True, text=True)
    shutil.rmtree(output)
    return {"action": action, **json.loads(said.stdout.splitlines()[-1])}


def do(action: str, folder: Path) -> None:
    """The measured process."""
    if action != "copy":
        load_libraries()
    if action == "proof":
        merge(folder / "base", folder / "out")
        print(json.dumps(prove(folder / "base", folder / "out") | {"peak_bytes": peak_memory()}))
        return
    output, start = folder / "out", time.monotonic()
    {"copy": copy, "merge": merge}[action](folder / "base", output)
    returned = time.monotonic() - start
    for path in output.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    seconds, returned = round(time.monotonic() - start, 1), round(returned, 1)
    print(json.dumps({"seconds": seconds, "returned": returned, "peak_bytes": peak_memory()}))


def main() -> None:
    """Make, measure, write down."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--shape", choices=SHAPES, default="7b")
    words.add_argument("--rank", type=int, default=64)
    words.add_argument("--rounds", type=int, default=2)
    words.add_argument("--proof", action="store_true")
    words.add_argument("--scratch", type=Path)
    words.add_argument("--out", type=Path)
    words.add_argument("--do", nargs=2)
    wanted = words.parse_args()
    if wanted.do:
        do(wanted.do[0], Path(wanted.do[1]))
        return
    with tempfile.TemporaryDirectory(dir=wanted.scratch) as scratch:
        folder, shape = Path(scratch), SHAPES[wanted.shape]
        make(folder, shape, wanted.rank)
        size = sum(path.stat().st_size for path in (folder / "base").glob("model*.safetensors"))
        rows = [measure(action, folder) for _ in range(wanted.rounds) for action in (["proof"] if wanted.proof else ["copy", "merge"])]
    found = {
        "what": f"LoRA of rank {wanted.rank} on every linear layer merged into a random {wanted.shape} Llama in bfloat16",
        "machine": {name: value for name, value in describe(Workers()).items() if name != "system"},
        "bytes": size,
        "rows": rows,
    }
    text = json.dumps(found | ({} if wanted.proof else bounds(shape, rows)), indent=2) + "\n"
    print(text)
    if wanted.out:
        wanted.out.write_text(text, encoding="utf-8")


def bounds(shape: dict, rows: list[dict]) -> dict:
    """The figures beside the bounds that a merge keeps."""
    largest = 2 * max(shape["vocabulary"], shape["ffn"]) * shape["hidden"]
    best = {action: min(row["seconds"] for row in rows if row["action"] == action) for action in ("copy", "merge")}
    peak = max(row["peak_bytes"] for row in rows if row["action"] == "merge")
    return {
        "ratio_to_copying": round(best["merge"] / best["copy"], 2),
        "ratio_allowed": 1.3,
        "peak_bytes": peak,
        "peak_allowed": 3 * largest + 600 * 10**6,
        "largest_weight_bytes": largest,
    }


if __name__ == "__main__":
    main()
