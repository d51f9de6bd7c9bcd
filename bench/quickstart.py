"""The quickstart's own data and recipe, trained by transformers' step and by the fast one, over each kind of base.

    python bench/quickstart.py [--steps 200] [--runs stock:nf4,fast:nf4,...] [--out bench/results/NAME.json]

Every training is a process of its own, under DeepSpeed as `invoke train` starts it. `loss` is the mean of the last 10 steps, `mean_loss`
of all; `largest_difference` is that of means over 10 steps from the first run, as a share. Held-out loss is at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "src"))

from tunestation.pipeline import machine, process, run  # noqa: E402  found by the line above
from tunestation.pipeline.job import Job  # noqa: E402
from tunestation.pipeline.stage import keys  # noqa: E402
from tunestation.pipeline.workers import Workers  # noqa: E402
from tunestation.work import open_recipe  # noqa: E402

METHODS = {"bf16": ["train.method=lora"], "nf4": [], "fp8": ["train.base.type=fp8"]}


def job(base: str, epochs: float, folder: Path) -> Job:
    """The training of the quickstart over `base`, on prepared data, into an empty `folder`."""
    work = open_recipe("quickstart", [*METHODS[base], f"train.epochs={epochs}"])
    list(run.run(work.until("prepare"), work.shelf, work.runtime, Workers(1)))  # each stage runs as it is drawn
    found, stage = keys(work.stages), next(stage for stage in work.stages if stage.name == "train")
    needs = {name: work.shelf.published(name, found[name]) for name in stage.needs}
    logs = folder.with_suffix(".logs")
    for made in (folder, logs):
        made.mkdir()
    return Job(stage.name, stage.function, stage.params, needs, folder, work.shelf.volumes, work.runtime | {"logs": str(logs)})


def train(file: Path, stock: bool) -> None:
    """What a training process does; with `stock` the fast step is said to be in the way of nothing."""
    from unittest import mock

    from tunestation.stages import train as stage

    given = Job.load(file)
    obstacle = (lambda *_: "it is measured beside the fast one") if stock else stage.obstacle
    with mock.patch.object(stage, "obstacle", obstacle):
        result = stage.run(given.params, given)
    seen = result.observed
    losses = list(seen["losses"].values())
    row = result.metrics | {"mean_loss": sum(losses) / len(losses), "losses": losses, "tokens_per_second": seen["tokens_per_second"]}
    file.with_suffix(".result").write_text(json.dumps(row | {"step": seen["step"]}), encoding="utf-8")


def measure(names: list[str], epochs: float) -> list[dict]:
    """A row of each run, `stock:BASE` or `fast:BASE`."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= {"TUNE_HOME": scratch, "TUNE_RUNNER": "here"}
        for name in names:
            kind, base = name.split(":")
            file = Path(scratch) / f"{kind}-{base}.json"
            job(base, epochs, file.with_suffix("")).save(file)
            words = [sys.executable, __file__, "--job", str(file), *(["--stock"] if kind == "stock" else [])]
            ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
            variables = process.child_variables(Path(scratch), offline=True) | ranks | {"MASTER_PORT": "29512"}
            start = time.monotonic()
            subprocess.run(words, env=os.environ | variables, check=True)
            row = {"case": "quickstart", "stack": "tunestation" if kind == "fast" else "transformers + peft", "base": base}
            row |= json.loads(file.with_suffix(".result").read_text(encoding="utf-8"))
            rows.append(compared(row | {"seconds": round(time.monotonic() - start, 1)}, rows[0]["losses"] if rows else row["losses"]))
            print({key: value for key, value in rows[-1].items() if key != "losses"}, flush=True)
    return rows


def compared(row: dict, first: list[float]) -> dict:
    """`row` with how far its losses are from those of the `first` run."""
    mine = row["losses"]
    tens = (slice(start, start + 10) for start in range(0, len(mine), 10))
    return row | {"largest_difference": round(max(abs(sum(mine[ten]) / sum(first[ten]) - 1) for ten in tens), 5)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--runs", default="stock:nf4,fast:nf4")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--stock", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.job:
        sys.exit(train(asked.job, asked.stock))
    measured = measure(asked.runs.split(","), round(asked.steps * 2 / 146 + 0.0005, 4))
    if asked.out:
        written = {"machine": machine.describe(Workers(1)), "rows": measured}
        asked.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
