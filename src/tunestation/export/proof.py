"""Shows in numbers that a merged model says what base and adapter say together, and not what the base says alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tunestation.errors import TunestationError
from tunestation.export.adapter import Adapter
from tunestation.export.merging import Rounding, plan
from tunestation.export.streamed import Source, adapted, stored, streamed
from tunestation.models.shards import Shards
from tunestation.pipeline.files import read_json
from tunestation.training.batches import load_rows

ROWS, TOKENS = 8, 64
"""Probes, and the longest one: about 500 positions, of which a 7B model needs a minute on a few cores."""


@dataclass(frozen=True)
class Probes:
    """Token ids given to each model, which says at every position what it expects next (teacher forcing)."""

    input_ids: torch.Tensor
    """int64 [rows, longest]; the padding on the right changes nothing before it."""
    mask: torch.Tensor
    """bool [rows, longest]: where there are tokens."""


def probes_of(prepared: Path) -> Probes:
    """The fixed probe conversations of `prepare`, and the beginnings of the first conversations that were trained on."""
    fixed = [probe["input_ids"] for probe in read_json(prepared / "probe.json").values()]
    rows = load_rows(prepared / "train")
    trained = [document for row in rows.select(range(min(ROWS, len(rows)))) for document in _documents(row)]
    chosen = [ids[:TOKENS] for ids in [*fixed, *trained][:ROWS]]
    longest = max(map(len, chosen))
    padded = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in chosen])
    return Probes(padded, torch.tensor([[True] * len(ids) + [False] * (longest - len(ids)) for ids in chosen]))


def _documents(row: dict) -> list[list[int]]:
    """The conversations of a pack: position_ids begin anew with each."""
    starts = [index for index, position in enumerate(row["position_ids"]) if position == 0]
    return [row["input_ids"][start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


@torch.no_grad()
def read(model: torch.nn.Module, probes: Probes, device: torch.device) -> torch.Tensor:
    """Logits in float32 [positions, vocabulary] at every token of the probes."""
    logits = model(input_ids=probes.input_ids.to(device), use_cache=False).logits
    return logits[probes.mask.to(device)].float().cpu()


@dataclass(frozen=True)
class Difference:
    """How far the logits of one model are from those of another."""

    largest: float
    mean: float
    """Of the absolute differences."""
    kl: float
    """Mean Kullback-Leibler divergence KL(wanted || found), in nats a token."""
    same_tokens: float
    """Share of positions at which both expect the same token first."""

    def rounded(self) -> dict[str, float]:
        """Six decimals are more than two machines agree on."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


def difference(wanted: torch.Tensor, found: torch.Tensor) -> Difference:
    """Compare logits [positions, vocabulary]; divergences are summed in float64, a few positions at a time."""
    gap = (wanted - found).abs_()
    kl = sum(_divergence(some, other) for some, other in zip(wanted.split(64), found.split(64), strict=True))
    same = (wanted.argmax(-1) == found.argmax(-1)).float().mean().item()
    return Difference(gap.max().item(), gap.mean().item(), kl / len(wanted), same)


def _divergence(wanted: torch.Tensor, found: torch.Tensor) -> float:
    expected, given = wanted.double().log_softmax(-1), found.double().log_softmax(-1)
    return torch.nn.functional.kl_div(given, expected, log_target=True, reduction="sum").item()


@dataclass(frozen=True)
class Case:
    """A merge, and what it was made of."""

    merged: Path
    base: Path | None
    """Folder of the untuned model; None when training began with new weights."""
    tuned: Path
    """Folder of the adapter, or of all weights after full training."""
    tied: bool
    """Whether the base has no head of its own."""
    dtype: torch.dtype
    roundings: dict[str, Rounding]
    """`16bit`, and after QLoRA the base that was trained on (`nf4` or `fp8`)."""
    chosen: str
    """Which of them was merged."""


@dataclass(frozen=True)
class Proof:
    """What the comparison found."""

    tuned: Difference
    """From base + adapter to the merged model."""
    base: Difference | None
    """From the untuned base to the merged model."""
    trained: dict[str, float] | None
    """After QLoRA: base that is merged -> KL from what was trained (quantised base + adapter) to the result."""

    @property
    def nearest(self) -> str:
        """The base whose merge is nearer to what was trained."""
        return min(self.trained, key=self.trained.__getitem__)


def prove(case: Case, probes: Probes, device: torch.device) -> Proof:
    """Run every model over the probes, layer by layer; all compute in float32, so that only stored weights differ."""
    found = read(streamed(case.merged, stored(Shards(case.merged)), device), probes, device)
    if case.base is None:
        return Proof(difference(_full(case, probes, device), found), None, None)
    base = Shards(case.base)
    plain = read(streamed(case.base, stored(base), device), probes, device)
    from_base = difference(plain, found)
    del plain
    if not (case.tuned / "adapter_config.json").is_file():
        return Proof(difference(_full(case, probes, device), found), from_base, None)
    adapter = Adapter(case.tuned)
    tuned = read(_together(case, base, adapter, case.chosen, device), probes, device)
    proof = Proof(difference(tuned, found), from_base, None)
    return proof if len(case.roundings) == 1 else _nearness(case, proof, base, adapter, tuned, found, probes, device)


def _full(case: Case, probes: Probes, device: torch.device) -> torch.Tensor:
    return read(streamed(case.merged, stored(Shards(case.tuned)), device), probes, device)


def _together(case: Case, base: Shards, adapter: Adapter, rounding: str, device: torch.device) -> torch.nn.Module:
    return adapted(case.base, stored(base, case.roundings[rounding]), adapter, device)


def _nearness(case: Case, proof: Proof, base: Shards, adapter: Adapter, tuned, found, probes: Probes, device: torch.device) -> Proof:
    """Adds how near each possible merge comes to what was trained; the one that was not chosen is made on the way."""
    (held,) = set(case.roundings) - {"16bit"}
    (other,) = set(case.roundings) - {case.chosen}
    trained = tuned if case.chosen == held else read(_together(case, base, adapter, held, device), probes, device)
    made = plan(base, adapter, case.tied, case.dtype, case.roundings[other])
    instead = read(streamed(case.base, Source(made.map(), made.release), device), probes, device)
    distances = {case.chosen: difference(trained, found).kl, other: difference(trained, instead).kl}
    return Proof(proof.tuned, proof.base, {name: round(kl, 6) for name, kl in sorted(distances.items())})


def judge(proof: Proof, max_kl: float, dtype: str) -> None:
    """Raises TunestationError for a merged model that is not what was trained."""
    if proof.base and proof.base.kl <= proof.tuned.kl:
        near = f"KL {proof.base.kl:.2g} from the base, {proof.tuned.kl:.2g} from what was trained"
        what = f"the merged model is still the untuned base ({near}): the merge, or the training, changed nothing that is left."
        raise TunestationError(what, remedy=_finer(dtype, "Train longer or with a higher train.learning_rate."))
    if not proof.tuned.kl <= max_kl:  # a comparison with nan is false
        what = f"the merged model is not what was trained: KL {proof.tuned.kl:.4g} from base + adapter, at most {max_kl:g} is allowed."
        raise TunestationError(what, remedy=_finer(dtype, "Raise export.max_kl to accept it."))


def _finer(dtype: str, otherwise: str) -> str:
    return otherwise if dtype == "float32" else f"Set export.dtype to float32 if rounding to {dtype} loses it. {otherwise}"
