"""merge: base and adapter become one folder of safetensors that AutoModelForCausalLM loads anywhere, and that proves itself."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tunestation.errors import Problem, TunestationError
from tunestation.export import merging
from tunestation.export.adapter import CONFIG, WEIGHTS, Adapter
from tunestation.fetching.manifest import FetchedModel, model_of
from tunestation.fetching.progress import amount
from tunestation.models.folder import is_weight
from tunestation.models.names import HEAD
from tunestation.models.shards import Shards
from tunestation.pipeline.digest import Digests, file_digest
from tunestation.pipeline.files import read_json, write_json
from tunestation.pipeline.job import Job, Result
from tunestation.pipeline.machine import peak_memory
from tunestation.stages.convert import REPORT

if TYPE_CHECKING:
    from tunestation.export.proof import Difference, Proof

BEGUN = "begun.json"
"""What an unfinished merge is made of: only a merge of the same goes on from it."""
TOLERANCES = {"merged_largest": 1.0, "merged_mean": 1.0, "merged_kl": 1.0, "base_kl": 0.5, "base_same_tokens": 0.5}
"""Of the proof's metrics in a lock: noise of rounding may double, and what was learned differs between kinds of device."""


@dataclass(frozen=True)
class Ingredients:
    """What a merge is made of."""

    tuned: Path
    """The result of `convert`: an adapter, or all weights after full training."""
    model: FetchedModel | None
    base: Path | None
    """Folder of the base; None when training began with new weights."""

    @property
    def adapter(self) -> bool:
        """Whether an adapter was trained."""
        return (self.tuned / CONFIG).is_file()

    @property
    def folder(self) -> Path:
        """Whose config.json and weights are the ground of the merge."""
        return self.base if self.adapter else self.tuned


def run(params: dict, job: Job) -> Result:
    """Write the model with tokenizer, chat template, generation config and model card; metrics compare it with base + adapter."""
    model = model_of(job.needs["fetch"])
    made_of = Ingredients(job.needs["convert"], model, job.volumes.path(model.ref) if model else None)
    _check_base(made_of, job)
    _check_gguf(made_of, params, job)
    plan, tied = _plan(made_of, params)
    _go_on(made_of, params, job)
    start = time.monotonic()
    merging.write(plan, job.output, params["shard_size"])
    seconds, memory = time.monotonic() - start, peak_memory()
    weights, size = sum(tensor.meta.numel() for tensor in plan.tensors), sum(tensor.meta.nbytes for tensor in plan.tensors)
    print(f"  {weights:,} weights in {params['dtype']}, {amount(size)} in {seconds:.1f} s, {amount(memory)} of memory", flush=True)
    licences = _beside(made_of, params, job, plan.tied)
    proof, proved = _prove(made_of, params, job, tied)
    _write_card(made_of, params, job, licences, proof)
    _write_gguf(params, job)
    (job.output / BEGUN).unlink()
    return Result(
        facts={"weights": weights, "dtype": params["dtype"], "modules_changed": len(plan.changed)},
        metrics=_metrics(proof),
        tolerances=TOLERANCES,
        observed={
            "seconds": round(seconds, 1),
            "peak_memory_gb": round(memory / 1e9, 3),
            "largest_weight_gb": round(max(tensor.meta.nbytes for tensor in plan.tensors) / 1e9, 3),
            "proof_seconds": round(proved, 1),
            "nearness": proof.trained,
        },
    )


def _check_base(made_of: Ingredients, job: Job) -> None:
    """The base must have the commit and the bytes that it had when the adapter was trained on it."""
    if not made_of.adapter:
        return
    before, model = read_json(made_of.tuned / REPORT)["base"], made_of.model
    digests, remedy = Digests(job.volumes.cache), "Merge with the base that was trained on, or train again: invoke train RECIPE --force"
    changed = [name for name, sha256 in before["files"].items() if model.files.get(name) != sha256]
    changed += [name for name in model.files if name not in changed and digests.of(made_of.base / name) != model.files[name]]
    what = "has other bytes than the base that the adapter was trained on."
    problems = [Problem(what, f"{model.ref}/{name}", remedy) for name in changed]
    if before["commit"] != model.commit:
        what = f"is at commit {model.commit}, but the adapter was trained on {before['commit']}."
        problems.append(Problem(what, model.name, remedy))
    if problems:
        raise TunestationError(problems=problems)


def _check_gguf(made_of: Ingredients, params: dict, job: Job) -> None:
    if params["gguf"]:
        from transformers import AutoTokenizer

        from tunestation.data.rendering import render
        from tunestation.export.gguf_file import check

        tokenizer = job.needs["prepare"] / "tokenizer"
        rendered = render(AutoTokenizer.from_pretrained(tokenizer, local_files_only=True), [{"role": "user", "content": "?"}], prompt=True)
        check(read_json(made_of.folder / "config.json"), read_json(tokenizer / "tokenizer.json"), rendered)


def _write_gguf(params: dict, job: Job) -> None:
    if params["gguf"]:
        from tunestation.export.gguf_file import write

        path = job.output / f"{params['name']}-{params['gguf']}.gguf"
        write(job.output, path, params["gguf"], params["name"])
        print(f"  {path.name}: {amount(path.stat().st_size)}", flush=True)


def _plan(made_of: Ingredients, params: dict) -> tuple[merging.Plan, bool]:
    """(what to write, whether the ground has no head of its own)."""
    from tunestation.models.architecture import ties_head

    source = Shards(made_of.folder)
    tied = ties_head(made_of.folder) and HEAD not in source
    if not made_of.adapter:
        _complete(made_of.tuned, source, tied)
    adapter = Adapter(made_of.tuned) if made_of.adapter else None
    rounding = _roundings(made_of, params, params["base"])[params["base"]]
    return merging.plan(source, adapter, tied, getattr(torch, params["dtype"]), rounding), tied


def _complete(folder: Path, source: Shards, tied: bool) -> None:
    """A weight that is not there would be filled with random numbers by whoever loads the folder."""
    from tunestation.models.architecture import shapes_of
    from tunestation.models.experts import as_parameters

    wanted = shapes_of(folder).keys() - ({HEAD} if tied else set())
    missing = sorted(wanted.difference(as_parameters(dict.fromkeys(source.names))))
    if missing:
        raise TunestationError(f"{len(missing)} weights are missing, first {missing[0]}.", str(folder), "Train again with --force.")


def _roundings(made_of: Ingredients, params: dict, *wanted: str) -> dict[str, merging.Rounding]:
    """The base as it is, and as training held it where that is asked for and another."""
    found = {"16bit": merging.as_stored}
    trained = params["trained_base"]
    if trained and trained["type"] in wanted:
        from tunestation.export.rounding import quantised

        found[trained["type"]] = quantised(made_of.base, trained["type"], trained["double_quant"])
    return found


def _go_on(made_of: Ingredients, params: dict, job: Job) -> None:
    """Keep the complete shards of an interrupted run if they were made of the same; else begin anew."""
    files = [path for path in sorted(made_of.tuned.iterdir()) if path.name in (CONFIG, WEIGHTS) or is_weight(path.name)]
    tuned = {path.name: file_digest(path) for path in files}
    now = {"tuned": tuned, "base": made_of.model.files if made_of.model else {}, "params": params}
    begun = job.output / BEGUN
    if begun.is_file() and read_json(begun) == now:
        print(f"  going on: {len(list(job.output.glob('model*.safetensors')))} weight files are complete", flush=True)
        return
    shutil.rmtree(job.output, ignore_errors=True)
    job.output.mkdir(parents=True)
    write_json(begun, now)


def _beside(made_of: Ingredients, params: dict, job: Job, tied: bool) -> list[str]:
    from tunestation.export import folder

    folder.write_config(made_of.folder, job.output, params["dtype"], tied)
    folder.write_tokenizer(job.needs["prepare"], made_of.base, params["generation"], job.output)
    return folder.copy_licences(made_of.base, job.output) if made_of.base else []


def _prove(made_of: Ingredients, params: dict, job: Job, tied: bool) -> tuple[Proof, float]:
    """(the proof, seconds it took); raises when it fails."""
    from tunestation.export.proof import Case, judge, probes_of, prove
    from tunestation.training.model import device

    start = time.monotonic()
    roundings = _roundings(made_of, params, "nf4", "fp8") if made_of.adapter else {"16bit": merging.as_stored}
    dtype = getattr(torch, params["dtype"])
    case = Case(job.output, made_of.base, made_of.tuned, tied, dtype, roundings, params["base"])
    proof = prove(case, probes_of(job.needs["prepare"]), device())
    print(f"  beside {'base + adapter' if made_of.adapter else 'the checkpoint'}: {_told(proof.tuned)}", flush=True)
    if proof.base:
        print(f"  beside the untuned base: {_told(proof.base)}", flush=True)
    if proof.trained:
        distances = ", ".join(f"{name} {kl:.2g}" for name, kl in proof.trained.items())
        print(f"  export.base: {proof.nearest} is nearest to what was trained (KL: {distances}); merged: {params['base']}", flush=True)
    judge(proof, params["max_kl"], params["dtype"])
    return proof, time.monotonic() - start


def _told(found: Difference) -> str:
    gaps = f"logits differ by {found.largest:.3g} at most, {found.mean:.2g} on average"
    return f"{gaps}; KL {found.kl:.2g}; {found.same_tokens:.1%} same tokens"


def _metrics(proof: Proof) -> dict[str, float]:
    found = {f"merged_{name}": value for name, value in proof.tuned.rounded().items()}
    if proof.base:
        base = proof.base.rounded()
        found |= {"base_kl": base["kl"], "base_same_tokens": base["same_tokens"]}
    return found


def _write_card(made_of: Ingredients, params: dict, job: Job, licences: list[str], proof: Proof) -> None:
    from tunestation.export.card import card

    rows = [("base + adapter", _told(proof.tuned))] if made_of.adapter else []
    rows += [("untuned base", _told(proof.base))] if proof.base else []
    text = card(params["name"], made_of.model, licences, job.needs, rows)
    (job.output / "README.md").write_text(text, encoding="utf-8", newline="\n")
