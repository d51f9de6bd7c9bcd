"""A model folder, loaded once, that answers conversations."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import tunestation.models.alibi  # noqa: F401  the Auto classes know Baichuan-13B then
from tunestation.chat.generate import context_size, decode, prompt_ids, stop_ids, stream_tokens
from tunestation.errors import InputError, TunestationError
from tunestation.recipe.schema import Generation


class Engine:
    """A causal language model and its tokenizer, from one folder of safetensors; no code of the folder is ever run."""

    def __init__(self, folder: Path, tokenizer: Path | None = None):
        """Load `folder`: bfloat16, but float32 on a CPU where the folder was saved so. Raises InputError when it is no whole model.

        `tokenizer` is a folder whose tokenizer and chat template take the place of the model's own.
        """
        started = time.perf_counter()
        self.name = "/".join(folder.parts[-2:])
        self.model, self.tokenizer = _load(folder, tokenizer or folder)
        self.stop = stop_ids(self.model, self.tokenizer)
        self.context = context_size(self.model, self.tokenizer)
        self.seconds_to_load = time.perf_counter() - started

    def summary(self) -> str:
        """One line for people: name, size, precision, device and the time it took to load."""
        size = sum(weight.numel() for weight in self.model.parameters())
        words = f"{size / 1e9:.1f} billion" if size >= 1e9 else f"{size / 1e6:.1f} million"
        dtype = str(self.model.dtype).removeprefix("torch.")
        device = {"cpu": "CPU", "cuda": "GPU"}.get(self.model.device.type, self.model.device.type)
        return f"Loaded in {self.seconds_to_load:.1f} s: {self.name}, {words} parameters, {dtype} on {device}"

    def fit(self, messages: list[dict], max_new_tokens: int) -> tuple[list[dict], int]:
        """(messages, dropped turns): the oldest turns, a question and its answer each, go until an answer has room.

        The system text and the last question always stay; an answer claims at most half of the context.
        Raises InputError when these two alone are too long.
        """
        room = self.context - min(max_new_tokens, self.context // 2)
        system, turns = _turns(messages)
        for dropped in range(len(turns)):
            kept = system + [message for turn in turns[dropped:] for message in turn]
            length = len(prompt_ids(self.tokenizer, kept))
            if length <= room:
                return kept, dropped
        raise InputError(
            f"The message{' with the system text' if system else ''} is {length} tokens long; "
            f"{room} of the model's {self.context} are left beside the answer.",
            remedy="Shorten it, or ask for a shorter answer.",
        )

    def reply(self, messages: list[dict], generation: Generation, seed: int | None = None) -> Generator[str, None, str]:
        """The answer as it grows: every item is the whole text so far. Returns "stop" or "length", why it ended.

        Nothing runs between items, so a caller that stops iterating stops the model. Raises InputError when
        `messages` leave no room for an answer (see `fit`).
        """
        prompt = prompt_ids(self.tokenizer, messages)
        room = self.context - len(prompt)
        if room < 1:
            raise InputError(f"The conversation is {len(prompt)} tokens long; the model takes {self.context}.", remedy="Start a new one.")
        limited = generation.model_copy(update={"max_new_tokens": min(generation.max_new_tokens, room)})
        return (yield from self._texts(stream_tokens(self.model, prompt, limited, self.stop, seed)))

    def _texts(self, tokens: Iterator[int]) -> Generator[str, None, str]:
        ids: list[int] = []
        shown = ""
        reason = "stop"
        while True:
            try:
                ids.append(next(tokens))
            except StopIteration as end:
                reason = end.value
                break
            # A character of several bytes may still lack some; they decode to U+FFFD until the next token.
            text = decode(self.tokenizer, ids).rstrip("\ufffd")
            if text != shown:
                shown = text
                yield text
        if decode(self.tokenizer, ids) != shown:
            yield decode(self.tokenizer, ids)
        return reason


def _turns(messages: list[dict]) -> tuple[list[dict], list[list[dict]]]:
    """The system messages, and the others cut before each user message."""
    system = [message for message in messages if message["role"] == "system"]
    turns: list[list[dict]] = []
    for message in messages[len(system) :]:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return system, turns


def _load(folder: Path, tokenizer_folder: Path) -> tuple:
    if not (folder / "config.json").is_file():
        raise InputError("There is no model here: config.json is missing.", str(folder), "Run the recipe first: invoke reproduce <recipe>.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True, **_placement(folder))
    except torch.OutOfMemoryError as error:
        what, remedy = "The model does not fit in the GPU's memory.", "Close other programs that use the GPU."
        raise TunestationError(what, str(folder), remedy) from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"The model cannot be loaded: {error}", str(folder)) from error
    return model.eval(), tokenizer


def _placement(folder: Path) -> dict:
    if torch.cuda.is_available():
        return {"dtype": torch.bfloat16, "device_map": "auto"}
    saved = AutoConfig.from_pretrained(folder, local_files_only=True).dtype
    return {"dtype": torch.float32 if saved == torch.float32 else torch.bfloat16}
