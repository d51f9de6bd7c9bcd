"""prepare: rows become conversations, token ids with labels, and packs; written as Arrow beside the tokenizer."""

from __future__ import annotations

import json
import re
import shutil
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tunestation.data.conversations import Conversation, Dropped
from tunestation.data.encoding import Encoded, Piece, encode_pieces, pieces
from tunestation.data.ledger import FATES, Ledger
from tunestation.data.packing import pack
from tunestation.data.parts import FileRef, PartFiles, collect
from tunestation.data.probe import probe
from tunestation.data.problems import Problems
from tunestation.data.tokenizers import control_tokens, load_tokenizer, set_template, train_tokenizer
from tunestation.errors import InputError
from tunestation.fetching.manifest import data_of, model_of
from tunestation.pipeline.files import write_json
from tunestation.pipeline.job import Job, Result
from tunestation.recipe.base import Fraction, Part, Positive
from tunestation.recipe.sources import NewTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1000
"""Conversations tokenised in one call."""


class Params(Part):
    """What `prepare` is asked for."""

    parts: Annotated[tuple[PartFiles, ...], Field(min_length=1)]
    template: str
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


@dataclass(frozen=True)
class Collected:
    """What the parts hold."""

    rows: int
    """Rows read; blank and left out ones are not counted."""
    conversations: list[Conversation]
    """In the order of parts, files and rows."""


@dataclass(frozen=True)
class Learned:
    """One conversation as ids, and how often it is seen in an epoch."""

    encoded: Encoded
    copies: int


def run(params: dict, job: Job) -> Result:
    """Write `tokenizer/`, `train/`, `held_out/`, `rows.jsonl` (rows dropped, truncated, repaired, blank) and `probe.json`.

    Raises InputError for data, template or tokenizer that cannot be used, and for more dropped rows than allowed.
    """
    settings = Params.model_validate_json(json.dumps(params))
    manifest = _manifest(job.needs["fetch"])
    _clear(job.output)
    ledger = Ledger()
    collected = _collect(settings, manifest, job, ledger)
    ledger.check(collected.rows, settings.max_dropped)
    tokenizer = _tokenizer(settings, manifest, collected, job)
    learned, longest = _learn(collected, tokenizer, settings.max_tokens, ledger)
    ledger.check(collected.rows, settings.max_dropped)
    train, held_out = split(learned, settings.held_out_fraction, settings.seed)
    facts = {"rows": collected.rows, "conversations": sum(one.copies for one in learned), "longest": longest}
    facts |= {fate: ledger.count(fate) for fate in FATES}
    facts |= _write_data(train, held_out, settings, job.output) | {"vocabulary": len(tokenizer)}
    ledger.write(job.output / "rows.jsonl")
    facts["probe"] = _write_tokenizer(tokenizer, job.output)
    _tell(facts, settings)
    return Result(facts=facts)


def _manifest(folder: Path) -> Manifest:
    model = model_of(folder)
    return Manifest.model_validate_json(json.dumps({"model_ref": model.ref if model else None, "data": data_of(folder)}))


def _collect(settings: Params, manifest: Manifest, job: Job, ledger: Ledger) -> Collected:
    rows, conversations = 0, []
    for outcome in collect(settings.parts, manifest.data, job.volumes, settings.seed):
        if isinstance(outcome, Dropped):
            rows += outcome.fate == "dropped"
            ledger.note(outcome.fate, outcome.where, outcome.reason)
            continue
        rows += 1
        if outcome.repaired:
            ledger.note("repaired", outcome.where, outcome.repaired)
        conversations.append(outcome)
    return Collected(rows, conversations)


def _clear(output: Path) -> None:
    """An interrupted run left half a result; it is made anew in less time than it takes to trust it."""
    for folder in ("tokenizer", "train", "held_out"):
        shutil.rmtree(output / folder, ignore_errors=True)


def _tokenizer(settings: Params, manifest: Manifest, collected: Collected, job: Job) -> PreTrainedTokenizerBase:
    if settings.tokenizer:
        messages = chain.from_iterable(conversation.messages for conversation in collected.conversations)
        texts = (f"{message.role}\n{message.content}" for message in messages)
        tokenizer, folder = train_tokenizer(texts, settings.tokenizer.vocab_size), None
    else:
        folder = job.volumes.path(manifest.model_ref)
        tokenizer = load_tokenizer(folder, manifest.model_ref)
    set_template(tokenizer, settings.template, folder)
    return tokenizer


def _learn(collected: Collected, tokenizer: PreTrainedTokenizerBase, max_tokens: int, ledger: Ledger) -> tuple[list[Learned], int]:
    """All conversations as ids, cut to `max_tokens`, and the length of the longest before it was cut."""
    found, longest = [], 0
    control = control_tokens(tokenizer)
    kept = [conversation for conversation in collected.conversations if not _forged(conversation, control, ledger)]
    cuts = _cut_into_pieces(kept, tokenizer)
    for first in range(0, len(kept), BATCH):
        encoded = encode_pieces(tokenizer, cuts[first : first + BATCH])
        for conversation, one in zip(kept[first : first + BATCH], encoded, strict=True):
            longest = max(longest, len(one.input_ids))
            short = _shortened(one, max_tokens, conversation.where, ledger)
            found += [Learned(short, conversation.copies)] if short else []
    return found, longest


def _forged(conversation: Conversation, control: re.Pattern, ledger: Ledger) -> bool:
    """Whether a text spells out a control token: it would end a turn where none ends."""
    hit = next((found for message in conversation.messages if (found := control.search(message.content))), None)
    if hit:
        ledger.note("dropped", conversation.where, f"a text holds the control token {hit[0]}")
    return bool(hit)


def _cut_into_pieces(conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase) -> list[list[Piece]]:
    problems = Problems("data")
    found = []
    for conversation in conversations:
        try:
            found.append(pieces(tokenizer, conversation.messages, conversation.where))
        except InputError as error:
            problems.add(*error.problems)
    problems.raise_if_any()
    return found


def _shortened(encoded: Encoded, max_tokens: int, where: str, ledger: Ledger) -> Encoded | None:
    if len(encoded.input_ids) <= max_tokens:
        return encoded
    short = encoded.cut(max_tokens)
    if not short.labelled:
        ledger.note("dropped", where, f"nothing to learn within max_tokens: the question fills all {max_tokens} tokens")
        return None
    ledger.note("truncated", where, f"{len(encoded.input_ids)} tokens, cut to {max_tokens}")
    return short


def split(learned: Sequence[Learned], fraction: float, seed: int) -> tuple[list[Learned], list[Learned]]:
    """(to train on, to hold out): round(fraction * n) of the n different conversations, at least one unless fraction is 0.

    Conversations with the same ids go the same way, else the held-out loss would be read on what was learned.
    Raises InputError if nothing is left to train on.
    """
    names = [array("i", one.encoded.input_ids).tobytes() for one in learned]
    different = list(dict.fromkeys(names))
    count = max(1, round(fraction * len(different))) if fraction else 0
    if count == len(different):
        what = f"holding out {count} of {len(different)} different conversations leaves nothing to train on."
        raise InputError(what, "evaluate.fraction", "Set it to 0, or add data.")
    chosen = set(Random(seed).sample(different, count))
    sides: tuple[list[Learned], list[Learned]] = ([], [])
    for name, one in zip(names, learned, strict=True):
        sides[name in chosen].append(one)
    return sides


def _write_data(train: Sequence[Learned], held_out: Sequence[Learned], settings: Params, output: Path) -> dict:
    from tunestation.data.arrow import write_packs

    sizes = {}
    for name, learned in (("train", train), ("held_out", held_out)):
        documents = [one.encoded for one in learned for _ in range(one.copies)]
        packs = _packs(documents, settings)
        write_packs(packs, output / name)
        sizes[name] = {
            "packs": len(packs),
            "tokens": sum(len(one.input_ids) for one in documents),
            "labelled_tokens": sum(one.labelled for one in documents),
        }
    return sizes["train"] | {f"held_out_{fact}": value for fact, value in sizes["held_out"].items()}


def _packs(documents: Sequence[Encoded], settings: Params) -> list[list[Encoded]]:
    """Without packing each conversation is a pack of its own, in shuffled order."""
    if settings.packing:
        rows = pack([len(one.input_ids) for one in documents], settings.max_tokens, settings.seed)
    else:
        rows = [[index] for index in range(len(documents))]
        Random(settings.seed).shuffle(rows)
    return [[documents[index] for index in row] for row in rows]


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, output: Path) -> dict[str, str]:
    """Save the tokenizer and what it makes of the probes; returns language -> digest of the ids."""
    tokenizer.save_pretrained(output / "tokenizer")
    probes = probe(tokenizer)
    write_json(output / "probe.json", probes)
    if "strftime_now" in str(tokenizer.chat_template):
        print("Note: the chat template writes today's date into every prompt; another day gives other token ids.")
    if not all(found["same_as_chat_template"] for found in probes.values()):
        print("Note: other programs will tokenise this model's chats a little differently from training (see probe.json).")
    return {language: found["sha256"] for language, found in probes.items()}


def _tell(facts: dict, settings: Params) -> None:
    print(f"{facts['rows']:,} rows became {facts['conversations']:,} conversations (longest: {facts['longest']:,} tokens).")
    fates = [f"{facts[fate]} {fate}" for fate in FATES if facts[fate]]
    print(f"Of the rows {', '.join(fates)}: rows.jsonl names each." if fates else "No row was dropped, truncated or repaired.")
    size = f"packs of {settings.max_tokens}" if settings.packing else "rows"
    full = f", {facts['tokens'] / (facts['packs'] * settings.max_tokens):.1%} full" if settings.packing else ""
    print(f"To train on: {facts['tokens']:,} tokens, {facts['labelled_tokens']:,} of them learned, in {facts['packs']:,} {size}{full}.")
    if facts["held_out_packs"]:
        print(f"Held out: {facts['held_out_tokens']:,} tokens in {facts['held_out_packs']:,} {size}.")
