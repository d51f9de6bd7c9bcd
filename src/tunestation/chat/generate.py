"""Answers of a causal language model: token by token for one conversation, greedily in batches for many."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import takewhile

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tunestation.data.encoding import encode_prompt
from tunestation.data.formats import Message
from tunestation.errors import InputError, Problem
from tunestation.recipe.schema import Generation


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> list[int]:
    """Ids of `{"role", "content"}` messages up to where the answer begins: the same that training saw."""
    return encode_prompt(tokenizer, [Message(message["role"], message["content"]) for message in messages])


def stop_ids(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end an answer: the tokenizer's end of sequence and those of the generation config, sorted."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({tokenizer.eos_token_id, *ids} - {None})


def context_size(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """Most tokens, prompt and answer together, that the model was made for."""
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of an answer's ids, without special tokens and otherwise as the model wrote it."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def stream_tokens(
    model: torch.nn.Module, prompt: list[int], generation: Generation, stop: list[int], seed: int | None = None
) -> Generator[int, None, str]:
    """The ids of one answer as they are drawn, without the stop id; returns "stop" or "length", why it ended.

    A plain loop in the caller's own thread: it ends when the caller stops iterating, and its errors are the caller's.
    The same `seed` draws the same answer; the global random state is neither read nor changed.
    """
    device = next(model.parameters()).device
    processors, generator = _processors(generation), _generator(device, seed)
    seen = new = torch.tensor([prompt], device=device)
    cache = None
    for _ in range(generation.max_new_tokens):
        logits, cache = _forward(model, new, cache)
        token = _choose(processors(seen, logits), None if generation.temperature == 0 else generator)
        if token in stop:
            return "stop"
        yield token
        new = torch.tensor([[token]], device=device)
        seen = torch.cat([seen, new], dim=1)
    return "length"


def _processors(generation: Generation) -> LogitsProcessorList:
    chosen = LogitsProcessorList()
    if generation.repetition_penalty != 1:
        chosen.append(RepetitionPenaltyLogitsProcessor(generation.repetition_penalty))
    if generation.temperature == 0:
        return chosen
    chosen.append(TemperatureLogitsWarper(generation.temperature))
    if generation.top_k:
        chosen.append(TopKLogitsWarper(generation.top_k))
    if generation.top_p < 1:
        chosen.append(TopPLogitsWarper(generation.top_p))
    return chosen


def _generator(device: torch.device, seed: int | None) -> torch.Generator:
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


@torch.no_grad()
def _forward(model: torch.nn.Module, new: torch.Tensor, cache: object) -> tuple[torch.Tensor, object]:
    """Logits (1, vocabulary) in float32 for the token after `new` (1, n), and the grown key-value cache."""
    # Without it a long prompt costs prompt x vocabulary logits, of which one row is used.
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    out = model(input_ids=new, past_key_values=cache, use_cache=True, **last_only)
    return out.logits[:, -1].float(), out.past_key_values


def _choose(scores: torch.Tensor, generator: torch.Generator | None) -> int:
    """The likeliest token without a generator, else one drawn by probability."""
    if generator is None:
        return int(scores.argmax(dim=-1))
    return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=generator))


def batch_answers(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[list[dict]],
    max_new_tokens: int,
    batch_size: int = 32,
) -> list[str]:
    """Greedy answers to many conversations, in their order; equal to one at a time in float32.

    `model` may be a PeftModel and in training mode: it answers in evaluation mode and is put back. Uses no random
    numbers. Under ZeRO-3 every rank must call it with the same conversations. Raises InputError for a conversation that
    fills the model's context.
    """
    prompts = [prompt_ids(tokenizer, messages) for messages in conversations]
    _check_room(prompts, conversations, context_size(model, tokenizer))
    # Neighbours of like length waste the least padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    with _evaluating(model):
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            texts = _greedy(model, tokenizer, [prompts[i] for i in members], max_new_tokens)
            for i, text in zip(members, texts, strict=True):
                answers[i] = text
    return answers


def _check_room(prompts: list[list[int]], conversations: list[list[dict]], context: int) -> None:
    problems = [
        Problem(f"{messages[-1]['content'][:40]!r}... is {len(ids)} tokens long; the model takes {context}.", "", "Shorten the question.")
        for ids, messages in zip(prompts, conversations, strict=True)
        if len(ids) >= context
    ]
    if problems:
        raise InputError(problems=problems)


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for a while. Modes are restored one by one, as PEFT keeps some parts of a training model in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def _greedy(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
    stop = stop_ids(model, tokenizer)
    width = max(map(len, prompts))
    padded = [[stop[0]] * (width - len(ids)) + ids for ids in prompts]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    device = next(model.parameters()).device
    out = model.generate(
        input_ids=torch.tensor(padded, device=device),
        attention_mask=torch.tensor(mask, device=device),
        generation_config=_greedy_config(max_new_tokens, stop),
    )
    return [decode(tokenizer, list(takewhile(lambda token: token not in stop, ids))) for ids in out[:, width:].tolist()]


def _greedy_config(max_new_tokens: int, stop: list[int]) -> GenerationConfig:
    """Every setting that changes a greedy answer, or warns, is named: an unset one would come from the model's folder."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=stop,
        pad_token_id=stop[0],
    )
