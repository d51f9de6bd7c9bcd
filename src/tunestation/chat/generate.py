"""What every answer of a causal language model needs, and greedy answers to many questions at once, also during training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from tunestation.chat.text import decode
from tunestation.data.encoding import encode_prompt
from tunestation.data.formats import Message
from tunestation.errors import InputError, Problem


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
