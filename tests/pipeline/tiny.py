"""A tiny chat model made on the spot: random weights, a real tokenizer with a chat template."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SENTENCES = [
    "What is your name? My name is Tiny, and I am a small chat model.",
    "The sky is blue because air scatters blue light more than red light.",
    "How many legs does a spider have? A spider has eight legs.",
    "Please write one short sentence about the weather of today.",
    "你叫什么名字？我叫小小，是一个很小的聊天模型。",
    "天空为什么是蓝色的？因为空气散射蓝光。",
    "请用一句话介绍你自己。今天天气怎么样？",
]


def make_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most 480 entries, with `<|endoftext|>` to pad and `<|im_end|>` to end; ChatML when `chat`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    wrapped.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    wrapped.chat_template = CHATML if chat else None
    return wrapped


def make_tiny_model(folder: Path, seed: int = 0, chat: bool = True, context: int = 512) -> Path:
    """Save a random float32 Llama (2 layers, hidden 64, `context` tokens) with its tokenizer in `folder`; returns `folder`."""
    tokenizer = make_tokenizer(chat)
    config = LlamaConfig(
        vocab_size=480,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # Far from zero, so that greedy answers differ from question to question.
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
