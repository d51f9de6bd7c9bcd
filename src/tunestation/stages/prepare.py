"""prepare: rows become conversations, token ids with labels, and packs; written as Arrow beside the tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tunestation.data.conversations import Conversation, Dropped
from tunestation.data.corpus import Corpus
from tunestation.data.encoding import Encoder, TrainOn
from tunestation.data.ledger import Ledger
from tunestation.data.packing import pack
from tunestation.data.parts import FileRef, PartFiles, Tell, collect
from tunestation.data.probe import probe
from tunestation.data.spool import Spool
from tunestation.data.tokenizers import load_tokenizer, pad, set_template, train_tokenizer
from tunestation.errors import InputError, TunestationError
from tunestation.fetching.manifest import data_of, model_of
from tunestation.models.limits import check_length, context_of
from tunestation.pipeline.files import write_json
from tunestation.pipeline.job import Job, Result
from tunestation.pipeline.volumes import Volumes
from tunestation.recipe.base import Fraction, Part, Positive
from tunestation.recipe.sources import NewTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEDGER = "rows.jsonl.zst"


class Params(Part):
    """What `prepare` is asked for."""

    parts: Annotated[tuple[PartFiles, ...], Field(min_length=1)]
    template: str
    template_text: str | None = None
    """Of a template in a file beside the recipe."""
    objective: Literal["sft", "pretrain"] = "sft"
    train_on: TrainOn = "assistant"
    max_tokens: Positive
    packing: bool
    max_dropped: Fraction
    held_out_fraction: Fraction
    seed: int
    tokenizer: NewTokenizer | None
    """Train one on the data; None takes the model's."""


class Manifest(Part):
    """What `prepare` reads of the manifest that `fetch` wrote."""

    model_ref: str | None
    data: tuple[tuple[FileRef, ...], ...]


def run(params: dict, job: Job) -> Result:
    """Write `tokenizer/`, `train/`, `held_out/`, the ledger `rows.jsonl.zst` with every row's fate, and `probe.json`.

    Raises InputError for data, template or tokenizer that cannot be used, for more dropped rows than allowed, and if no
    stop token is learned.
    """
    settings = Params.model_validate_json(json.dumps(params))
    manifest = manifest_of(job.needs["fetch"])
    _clear(job.output)
    tokenizer = make_tokenizer(settings, manifest, job)
    ledger, spool = Ledger(job.output / LEDGER), Spool(job.output / "documents")
    corpus = Corpus(Encoder(tokenizer, settings.train_on), settings.max_tokens, spool, ledger)
    corpus.read(outcomes(settings, manifest, job.volumes, print))
    ledger.close()
    _gate(ledger, corpus, settings)
    sizes = _write_data(corpus, settings, job.output)
    spool.close()
    (job.output / "documents").unlink()
    probes = _write_tokenizer(tokenizer, job.output)
    facts = _facts(ledger, corpus) | sizes | {"vocabulary": len(tokenizer), "probe": {name: one["sha256"] for name, one in probes.items()}}
    context = context_of(job.volumes.path(manifest.model_ref)) if manifest.model_ref else None
    warnings = [*_losses(ledger, facts, settings), *_surprises(tokenizer, probes), *_beyond(context, facts, settings)]
    _tell(facts, settings, warnings)
    return Result(facts=facts, observed={"warnings": warnings})


def manifest_of(folder: Path) -> Manifest:
    """What `fetch` left in `folder`."""
    model = model_of(folder)
    return Manifest.model_validate_json(json.dumps({"model_ref": model.ref if model else None, "data": data_of(folder)}))


def _clear(output: Path) -> None:
    """An interrupted run left half a result; it is made anew in less time than it takes to trust it."""
    for folder in ("tokenizer", "train", "held_out"):
        shutil.rmtree(output / folder, ignore_errors=True)


def outcomes(settings: Params, manifest: Manifest, volumes: Volumes, tell: Tell) -> Iterator[Conversation | Dropped]:
    """What becomes of every row, as `collect` says; what `format: auto` recognised goes to `tell`."""
    return collect(settings.parts, manifest.data, volumes, settings.seed, settings.objective, tell)


def silently(_line: str) -> None:
    """Told nothing: for a pass over the rows beside the one that is learned from."""


def make_tokenizer(settings: Params, manifest: Manifest, job: Job) -> PreTrainedTokenizerBase:
    """The tokenizer that the recipe stands for, with its template: the model's, or one trained on the data.

    Raises InputError if either cannot be used, and for data that cannot be read.
    """
    if settings.tokenizer:
        texts = (text for outcome in outcomes(settings, manifest, job.volumes, silently) for text in _texts(outcome))
        tokenizer, folder = train_tokenizer(texts, settings.tokenizer.vocab_size), None
    else:
        folder = job.volumes.path(manifest.model_ref)
        check_length(folder, settings.max_tokens)
        tokenizer = load_tokenizer(folder, manifest.model_ref)
    if settings.objective == "pretrain" and settings.template == "auto" and tokenizer.chat_template is None:
        pad(tokenizer)  # documents need no template
    else:
        set_template(tokenizer, settings.template, folder, settings.template_text)
    return tokenizer


def _texts(outcome: Conversation | Dropped) -> Iterator[str]:
    if isinstance(outcome, Conversation):
        yield from (f"{message.role}\n{message.content}" for message in outcome.messages)
        yield from [outcome.text] if outcome.text else []


def _gate(ledger: Ledger, corpus: Corpus, settings: Params) -> None:
    """Nothing that would spend a GPU's time in vain goes on."""
    ledger.check(ledger.rows, settings.max_dropped)
    if settings.objective == "sft" and not corpus.counts["stop_tokens"]:
        stop = corpus.encoder.tokenizer.eos_token
        what = f"the stop token {stop} is in no label: every answer was cut before its end, and the model would never stop."
        raise InputError(what, "data", f"Raise train.max_tokens (the longest row has {corpus.counts['longest']:,} tokens).")


def _write_data(corpus: Corpus, settings: Params, output: Path) -> dict:
    train, held_out = corpus.split(settings.held_out_fraction, settings.seed)
    corpus.forget()
    found = _write_side(corpus.spool, train, settings, output / "train")
    return found | {f"held_out_{fact}": value for fact, value in _write_side(corpus.spool, held_out, settings, output / "held_out").items()}


def _write_side(spool: Spool, documents: Sequence[int], settings: Params, folder: Path) -> dict:
    from tunestation.data.arrow import write_packs

    packs = _packs(spool, documents, settings)
    tokens = sum(spool.lengths[document] for document in documents)
    written = write_packs(packs, spool, folder)
    if written != tokens:
        raise TunestationError(f"{tokens:,} tokens were prepared, but {written:,} packed.", str(folder), "Run prepare again.")
    fill = round(tokens / (len(packs) * settings.max_tokens), 5) if packs else 0.0
    return {"packs": len(packs), "tokens": tokens, "labelled_tokens": sum(spool.labelled[document] for document in documents), "fill": fill}


def _packs(spool: Spool, documents: Sequence[int], settings: Params) -> list[list[int]]:
    """Without packing each document is a pack of its own, in shuffled order."""
    if settings.packing:
        rows = pack([spool.lengths[document] for document in documents], settings.max_tokens, settings.seed)
        return [[documents[index] for index in row] for row in rows]
    rows = [[document] for document in documents]
    Random(settings.seed).shuffle(rows)
    return rows


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, output: Path) -> dict[str, dict]:
    """Save the tokenizer and what it makes of the probes, which are returned; without a template there are none."""
    tokenizer.save_pretrained(output / "tokenizer")
    probes = probe(tokenizer) if tokenizer.chat_template else {}
    write_json(output / "probe.json", probes)
    return probes


def _facts(ledger: Ledger, corpus: Corpus) -> dict:
    fates = {fate.replace(" ", "_"): ledger.fates[fate] for fate in ("kept", "truncated", "split", "dropped", "blank", "left out")}
    return {"rows": ledger.rows, **fates, "empty_answers": ledger.reasons["empty answer"], **corpus.counts}


def _losses(ledger: Ledger, facts: dict, settings: Params) -> Iterator[str]:
    """What did not go through as it was, in sentences."""
    if facts["dropped"]:
        why = "; ".join(f"{count:,} {reason}" for reason, count in ledger.reasons.most_common(3))
        yield f"{_rows(facts['dropped'])} of {facts['rows']:,} dropped: {why}"
    if facts["truncated"]:
        yield f"{_rows(facts['truncated'])} cut at {settings.max_tokens} tokens: {facts['lost_tokens']:,} tokens lost"
    if facts["repaired"]:
        yield f"{_rows(facts['repaired'])} repaired"
    if facts["duplicates"]:
        yield f"{_rows(facts['duplicates'])} equal to an earlier row"


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count > 1 else ''}"


def _surprises(tokenizer: PreTrainedTokenizerBase, probes: dict[str, dict]) -> Iterator[str]:
    if "strftime_now" in str(tokenizer.chat_template):
        yield "the chat template writes today's date into every prompt: another day gives other token ids"
    if not all(found["same_as_chat_template"] for found in probes.values()):
        yield "other programs will tokenise this model's chats a little differently from training (probe.json): use its own page and API"


def _beyond(context: int | None, facts: dict, settings: Params) -> Iterator[str]:
    """Documents that are longer than those for which the model was made; packs are not, as each document begins at its own position 0."""
    longest = min(facts["longest"], settings.max_tokens)
    if context and longest > context:
        yield f"documents of up to {longest:,} tokens, and the model was made for {context:,}: lower train.max_tokens"


def _tell(facts: dict, settings: Params, warnings: Sequence[str]) -> None:
    print(f"{facts['rows']:,} rows became {facts['conversations']:,} conversations (longest: {facts['longest']:,} tokens).")
    for warning in warnings:
        print(f"  warning: {warning}")
    print(f"{LEDGER} names the fate of every row." if warnings else "No row was dropped, truncated or repaired.")
    size = f"packs of {settings.max_tokens}" if settings.packing else "rows"
    full = f", {facts['fill']:.1%} full" if settings.packing else ""
    print(f"To train on: {facts['tokens']:,} tokens, {facts['labelled_tokens']:,} of them learned, in {facts['packs']:,} {size}{full}.")
    if facts["held_out_packs"]:
        print(f"Held out: {facts['held_out_tokens']:,} tokens in {facts['held_out_packs']:,} {size}.")
