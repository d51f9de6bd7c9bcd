"""What a frozen base in 8-bit floats costs, beside NF4 and 16 bits, on a model trained here from nothing on real data.

    python bench/fp8.py DATA [--bases bf16,nf4,fp8] [--work FOLDER] [--out bench/results/NAME.json]

DATA holds c4_demo.jsonl ({"text"}) and alpaca_en_demo.json ({"instruction", "input", "output"}). The base learns the texts and the answers
as plain documents; then adapters learn the conversations over the same base held in each way, by recipes, as
`invoke reproduce` trains them. A layer's output error is that of its product with what it reads while held-out conversations go
through the base in 16 bits: ||y - y16|| / ||y16||. 8-bit products are emulated in fp32 on a CPU, from the same 8-bit values.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from pathlib import Path

import source  # noqa: F401  so that tunestation is found

from tunestation.pipeline import machine, run
from tunestation.pipeline.workers import Workers
from tunestation.work import Work, open_recipe

METHODS = {"bf16": ["train.method=lora"], "nf4": [], "fp8": ["train.base.type=fp8"]}
BASE = """
schema_version: 1
name: base
summary: A model from nothing.
model:
  source:
    kind: new
    hidden_size: 320
    intermediate_size: 896
    num_hidden_layers: 8
    num_attention_heads: 5
    num_key_value_heads: 5
    tokenizer: {vocab_size: 1024}       # small, so that a short training learns to use the context
data:
  sources:
    - {source: {kind: files, paths: [c4_demo.jsonl]}, format: {kind: text}}
    - {source: {kind: files, paths: [alpaca_en_demo.json]}, format: {kind: text, column: output}}
template: chatml
train:
  method: full
  objective: pretrain
  max_tokens: 512
  global_batch_size: 4
  learning_rate: 1.5e-3
  betas: [0.9, 0.95]
  weight_decay: 0.1
evaluate: {fraction: 0.03}
runtime: {micro_batch_size: 4, gradient_checkpointing: false}
"""
TUNED = """
schema_version: 1
name: tuned
summary: Adapters over it.
model: {source: {kind: folder, path: base}}
data:
  sources:
    - {source: {kind: files, paths: [alpaca_en_demo.json]}, format: {kind: alpaca}}
template: chatml
train: {max_tokens: 512, global_batch_size: 4, learning_rate: 1e-3, lora: {rank: 32, alpha: 32, dropout: 0.0}}
evaluate: {fraction: 0.1}
runtime: {micro_batch_size: 4, gradient_checkpointing: false}
"""


def reproduced(recipe: Path, last: str, assignments: list[str]) -> tuple[Work, Path]:
    """The recipe, and the folder of what its stages up to `last` made."""
    work = open_recipe(str(recipe), assignments)
    done = list(run.run(work.until(last), work.shelf, work.runtime, Workers(1)))
    return work, done[-1].folder


def row(case: str, work: Work) -> dict:
    """What a training says of itself."""
    record = work.records()["train"]
    facts = {name: record["facts"][name] for name in ("steps", "trained_tokens")}
    before = next(iter(record["observed"]["losses"].values()))
    return {"case": case, "stack": "tunestation"} | facts | record["metrics"] | {"first_loss": before, "step": record["observed"]["step"]}


def errors(base: Path, prepared: Path, count: int) -> dict[str, dict[str, float]]:
    """Layer -> output error of nf4 and of fp8, over `count` held-out rows of `prepared`."""
    import bitsandbytes as bnb
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from transformers import AutoModelForCausalLM

    from tunestation.training.batches import load_rows
    from tunestation.training.fast import float8, ops

    model, seen = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), {}
    linears = {name: module for name, module in model.model.named_modules() if isinstance(module, torch.nn.Linear)}
    for name, linear in linears.items():
        linear.register_forward_pre_hook(lambda _, given, name=name: seen.setdefault(name, []).append(given[0][0]))
    rows, found = load_rows(prepared / "held_out"), {}
    with torch.no_grad():
        for index in range(min(count, len(rows))):
            model(torch.tensor([rows[index]["input_ids"]]))
        for name, linear in linears.items():
            x = torch.cat(seen.pop(name))
            exact = x.float() @ linear.weight.float().t()
            eight = float8.multiply(ops.quantise_rows(x), float8.Float8Linear(linear, torch.device("cpu")).by_rows, None, x.dtype)
            packed = bnb.nn.Params4bit(linear.weight.data.clone(), requires_grad=False, quant_type="nf4").to("cpu")
            four = x @ dequantize_4bit(packed.data, packed.quant_state).t()
            found[name] = {kind: ((y.float() - exact).norm() / exact.norm()).item() for kind, y in (("nf4", four), ("fp8", eight))}
    return found


def summary(found: dict[str, dict[str, float]]) -> list[dict]:
    """Rows of the layers' output errors."""
    rows = []
    for kind in ("nf4", "fp8"):
        values = {name: pair[kind] for name, pair in found.items()}
        worst = max(values, key=values.get)
        ends = {"median": round(statistics.median(values.values()), 4), "largest": round(values[worst], 4), "largest_in": worst}
        rows.append({"case": "output error", "stack": "tunestation", "base": kind, "layers": len(values)} | ends)
    shares = [pair["fp8"] / pair["nf4"] for pair in found.values()]
    rows[-1] |= {"layers_nearer_than_nf4": sum(share < 1 for share in shares), "largest_share_of_nf4": round(max(shares), 3)}
    return rows


def measure(data: Path, home: Path, bases: list[str], epochs: list[float]) -> list[dict]:
    """Train the base, then adapters over it held in each way; what `home` already holds of it is not done again."""
    os.environ |= {"TUNE_HOME": str(home), "TUNE_RUNNER": "here", "TUNE_DATASETS": str(data.resolve())}
    for name, text in (("base", BASE), ("tuned", TUNED)):
        (home / f"{name}.yaml").write_text(text, encoding="utf-8")
    work, merged = reproduced(home / "base.yaml", "merge", [f"train.epochs={epochs[0]}"])
    shutil.copytree(merged, work.settings.models / "base", dirs_exist_ok=True)
    rows = [row("base", work)]
    for base in bases:
        work, _ = reproduced(home / "tuned.yaml", "train", [*METHODS[base], f"train.epochs={epochs[1]}"])
        rows.append(row("tuned", work) | {"base": base})
        rows[-1]["held_out_against_bf16"] = round(rows[-1]["held_out_loss"] / rows[1]["held_out_loss"] - 1, 5)
    found = errors(merged, work.folder("prepare"), 40)
    return [*rows, *summary(found), *({"case": "layer", "stack": "tunestation", "name": name} | pair for name, pair in found.items())]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--bases", default="bf16,nf4,fp8")
    parser.add_argument("--epochs", default="1.5,0.7", help="of the base, and of the adapters")
    parser.add_argument("--work", type=Path, help="keep what was trained in this folder, and go on from it")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = asked.work or Path(scratch)
        home.mkdir(parents=True, exist_ok=True)
        measured = measure(asked.data, home, asked.bases.split(","), [float(number) for number in asked.epochs.split(",")])
    for each in measured:
        print({key: value for key, value in each.items() if key != "stack"}, flush=True)
    if asked.out:
        written = {"machine": machine.describe(Workers(1)), "what": __doc__.splitlines()[0], "rows": measured}
        asked.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
