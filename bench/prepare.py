"""How fast `prepare` is, how much memory it needs, and how full its packs are.

    python bench/prepare.py --alpaca alpaca_en_demo.json --vocabulary internlm2_tokenizer --gigabytes 2 --out FILE

Every case runs in a process of its own, whose clock includes Python's start and all imports. `--alpaca` is a JSON array of
Alpaca rows, repeated with a number in front until there are enough; `--vocabulary` is a folder with InternLM2's tokenizer.model.
Peers are measured where they are installed: `datasets.map` row by row, and TRL's SFTTrainer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunestation.data.encoding import Encoder

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "src"))
ROWS = 52_000
RECIPE = {
    "schema_version": 1,
    "name": "bench",
    "summary": "Alpaca rows for a model with InternLM2's vocabulary.",
    "model": {"source": {"kind": "folder", "path": "tiny"}},
    "data": {"sources": [{"source": {"kind": "files", "paths": ["rows.jsonl"]}, "format": {"kind": "alpaca"}}]},
    "template": "internlm2_chat",
    "evaluate": {"fraction": 0.02},
}


def main() -> None:
    """Measure all cases and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alpaca", type=Path, required=True)
    parser.add_argument("--vocabulary", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=0.0, help="size of the large file; 0 leaves it out")
    known = ["invoke", *(name for name in CASES if name != "trl" or find_spec("trl"))]
    parser.add_argument("--cases", nargs="*", choices=known, default=known)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", help="internal: run this case in this process")
    parser.add_argument("--root", type=Path, help="internal: the workspace")
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(CASES[asked.case](asked.root)))
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("TUNE_BENCH_TMP")) as scratch:
        found = measure(asked, Path(scratch))
    text = json.dumps(found, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(f"{text}\n", encoding="utf-8")


def measure(asked: argparse.Namespace, root: Path) -> dict:
    """All cases, one after the other."""
    make_workspace(root, asked.vocabulary)
    rows = json.loads(asked.alpaca.read_text(encoding="utf-8"))
    size = write_rows(root / "recipes/rows.jsonl", rows, count=ROWS)
    cases = []
    if "invoke" in asked.cases:
        cases += repeated(root, size)
    cases += [child(asked, name, root) for name in CASES if name in asked.cases]
    if asked.gigabytes:
        size = write_rows(root / "recipes/rows.jsonl", rows, size=int(asked.gigabytes * 1e9))
        cases += [{"case": f"invoke prepare, {size / 1e9:.2f} GB of JSON lines", **invoke(root)}]
    return {"machine": machine(), "cases": cases}


def repeated(root: Path, size: int) -> list[dict]:
    """The first run, a second one, and one after a change."""
    cases = [{"case": f"invoke prepare, {ROWS:,} Alpaca rows, {size / 1e6:.0f} MB", **invoke(root)}]
    cases += [{"case": "invoke prepare again, nothing changed", **invoke(root)}]
    change_one_byte(root / "recipes/rows.jsonl")
    cases += [{"case": "invoke prepare again, one byte changed", **invoke(root)}]
    return cases


def make_workspace(root: Path, vocabulary: Path) -> None:
    """A recipe and a model folder with the real vocabulary and weights of almost no size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunestation.models.native.registry import family_named
    from tunestation.models.native.vocabularies import write_tokenizer

    model = root / "home/models/tiny"
    (root / "recipes").mkdir()
    config = LlamaConfig(vocab_size=92_544, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    LlamaForCausalLM(config).save_pretrained(model)
    write_tokenizer(family_named("internlm2"), vocabulary, {}, None, model)
    (root / "recipes/bench.yaml").write_text(json.dumps(RECIPE), encoding="utf-8")


def write_rows(path: Path, rows: list[dict], count: int | None = None, size: int | None = None) -> int:
    """Write `count` rows or `size` bytes, no two rows alike; returns the bytes."""
    written = number = 0
    with path.open("wb") as file:
        while (number < count) if count else (written < size):
            row = rows[number % len(rows)]
            line = json.dumps(row | {"instruction": f"{number}. {row['instruction']}"}, ensure_ascii=False)
            written += file.write(f"{line}\n".encode())
            number += 1
    return written


def change_one_byte(path: Path) -> None:
    """The first letter of the first question."""
    with path.open("r+b") as file:
        at = file.read(200).index(b"0. ") + 3
        file.seek(at)
        file.write(b"X")


def invoke(root: Path) -> dict:
    """`invoke prepare bench` as a user runs it: seconds, largest resident memory of any process, facts."""
    variables = {"TUNE_HOME": str(root / "home"), "TUNE_RECIPES": str(root / "recipes"), "TUNE_RUNNER": "here"}
    started = time.perf_counter()
    command = [sys.executable, "-m", "invoke", "prepare", "bench"]
    running = subprocess.Popen(command, cwd=PROJECT, env=os.environ | variables, stdout=subprocess.PIPE, text=True)
    peak, cpu = watch(running)
    seconds = time.perf_counter() - started
    said = running.stdout.read()
    if running.returncode:
        raise SystemExit(said)
    facts = last_record(root)
    skipped = "skipped" in next(line for line in said.splitlines() if line.startswith("prepare"))
    spent = {"seconds": round(seconds, 1), "cpu_seconds_of_the_stage": round(cpu, 1), "peak_resident_gb": round(peak / 1e9, 2)}
    return {**spent, "skipped": skipped, **facts}


def watch(running: subprocess.Popen) -> tuple[int, float]:
    """Wait for the end; (the most bytes, the most processor seconds) of any one of its processes, read ten times a second."""
    import psutil

    peak, cpu = 0, 0.0
    while running.poll() is None:
        for process in psutil.Process(running.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                peak, cpu = max(peak, process.memory_info().rss), max(cpu, sum(process.cpu_times()[:2]))
        time.sleep(0.1)
    return peak, cpu


def last_record(root: Path) -> dict:
    """What the newest result of prepare says."""
    newest = max((root / "home/runs/bench").glob("prepare-*/stage.json"), key=lambda path: path.stat().st_mtime)
    facts = json.loads(newest.read_text(encoding="utf-8"))["facts"]
    return {name: facts[name] for name in ("rows", "tokens", "packs", "fill", "dropped")}


def child(asked: argparse.Namespace, name: str, root: Path) -> dict:
    """One of CASES in a process of its own, with its time and memory."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--alpaca", asked.alpaca, "--vocabulary", asked.vocabulary, "--case", name, "--root", root]
    quiet = {"TOKENIZERS_PARALLELISM": "true", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | quiet)
    if done.returncode:
        return {"case": name, "failed": done.returncode}
    return json.loads(done.stdout.splitlines()[-1]) | {"process_seconds": round(time.perf_counter() - started, 1)}


def messages(root: Path, count: int = ROWS) -> Iterator[list]:
    """The first rows as conversations."""
    from tunestation.data.formats import Message

    with (root / "recipes/rows.jsonl").open(encoding="utf-8") as file:
        for line, _ in zip(file, range(count), strict=False):
            row = json.loads(line)
            yield [Message("user", f"{row['instruction']}\n{row['input']}"), Message("assistant", row["output"])]


def tokenizer(root: Path):
    """InternLM2's, with XTuner's template."""
    from tunestation.data.tokenizers import load_tokenizer, set_template

    found = load_tokenizer(root / "home/models/tiny", "tiny")
    set_template(found, "internlm2_chat", None)
    return found


def batches(root: Path) -> dict:
    """The same pieces in batches on all cores, and conversation by conversation; the best of three rounds each.

    Each round has tokenizers of its own: they remember what they have seen, and would be faster the second time. Processor
    seconds are told beside the clock's: on a machine that others use, only they say how the two compare.
    """
    from tunestation.data.encoding import Encoder

    talks = list(messages(root, 3000))
    together, alone = [], []
    for _ in range(3):
        encoder = Encoder(tokenizer(root))
        pieces = [encoder.pieces(talk) for talk in talks]
        first, spent = clocked(encoder, pieces, 1000)
        together.append(spent)
        second, spent = clocked(Encoder(tokenizer(root)), pieces, 1)
        alone.append(spent)
        assert first == second
    tokens = sum(len(one.input_ids) for one in first)
    kinds = {"in_batches": together, "row_by_row": alone}
    found = {f"tokens_per_second_{name}": round(tokens / min(wall for wall, _ in spent)) for name, spent in kinds.items()}
    found |= {f"tokens_per_processor_second_{name}": round(tokens / min(cpu for _, cpu in spent)) for name, spent in kinds.items()}
    return {"case": "tokenising 3,000 conversations", **found}


def clocked(encoder: Encoder, pieces: list, size: int) -> tuple[list, tuple[float, float]]:
    """(the conversations encoded in groups of `size`, (seconds of the clock, seconds of all processors))."""
    wall, cpu = time.perf_counter(), time.process_time()
    done = [one for first in range(0, len(pieces), size) for one in encoder.encode(pieces[first : first + size])]
    return done, (time.perf_counter() - wall, time.process_time() - cpu)


def packing(root: Path) -> dict:
    """52,000 log-normal lengths into packs of 2,048."""
    from tunestation.data.packing import pack

    dice = random.Random(0)
    lengths = [min(2048, max(1, int(dice.lognormvariate(5, 1)))) for _ in range(ROWS)]
    started = time.perf_counter()
    packs = pack(lengths, 2048, 0)
    seconds = time.perf_counter() - started
    return {"case": "packing 52,000 log-normal lengths", "seconds": round(seconds, 2), "fill": round(sum(lengths) / (2048 * len(packs)), 5)}


def by_map(root: Path) -> dict:
    """The usual way: datasets.map, one row at a time, in as many processes as there are cores; no labels, no packs."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import datasets

    made, started = tokenizer(root), time.perf_counter()
    data = datasets.load_dataset("json", data_files=str(root / "recipes/rows.jsonl"), split="train", cache_dir=str(root / "map"))

    def encode(row: dict) -> dict:
        talk = [{"role": "user", "content": f"{row['instruction']}\n{row['input']}"}, {"role": "assistant", "content": row["output"]}]
        return {"input_ids": made.apply_chat_template(talk, return_dict=False)}

    data = data.map(encode, num_proc=os.cpu_count(), remove_columns=data.column_names)
    tokens = sum(map(len, data["input_ids"]))
    return {"case": "datasets.map row by row", "seconds": round(time.perf_counter() - started, 1), "tokens": tokens}


def by_trl(root: Path) -> dict:
    """TRL's SFTTrainer up to the end of its own preparation: template, tokenising and packing by map."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import datasets
    import trl
    from transformers import AutoModelForCausalLM

    made = tokenizer(root)
    model = AutoModelForCausalLM.from_pretrained(root / "home/models/tiny")
    started = time.perf_counter()
    talks = [{"messages": [message.turn() for message in talk]} for talk in messages(root)]
    cores = {"dataset_num_proc": os.cpu_count(), "max_length": 2048, "packing": True}
    args = trl.SFTConfig(output_dir=str(root / "trl"), use_cpu=True, bf16=False, report_to=[], **cores)
    trainer = trl.SFTTrainer(model=model, args=args, train_dataset=datasets.Dataset.from_list(talks), processing_class=made)
    rows = len(trainer.train_dataset)
    return {"case": f"TRL {trl.__version__}, packing", "seconds": round(time.perf_counter() - started, 1), "packs": rows}


def machine() -> dict:
    """What the figures were read on."""
    from tunestation.pipeline.stage import tool_versions

    cores = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": sys.version.split()[0]}
    return cores | tool_versions(("tokenizers", "transformers", "datasets", "pyarrow", "trl"))


CASES = {"batches": batches, "packing": packing, "map": by_map, "trl": by_trl}

if __name__ == "__main__":
    main()
