"""Tiny models that learned a few conversations by heart: they are sure of every token, so that rounding changes none."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

TALKS = {
    "What is your name?": "My name is Tiny, and I am a small chat model.",
    "你叫什么名字？": "我叫小小，是一个很小的聊天模型。",
    "How many legs  does a spider have?": "A spider has eight legs: 12345678.",
    "Write one  sentence,\n\nas you like.": "The sky is blue because\n\nair scatters blue light.",
}


def ids_of(tokenizer: PreTrainedTokenizerFast, question: str, answer: str | None = None) -> list[int]:
    """The ids of a conversation, up to where the answer begins if there is none."""
    talk = [{"role": "user", "content": question}, *([{"role": "assistant", "content": answer}] if answer else [])]
    return tokenizer.apply_chat_template(talk, add_generation_prompt=answer is None, return_dict=False)


def make_decided(folder: Path, tokenizer: PreTrainedTokenizerFast, kind: str = "llama", **options: object) -> torch.nn.Module:
    """Train a model of type `kind` on TALKS and save it with its tokenizer in `folder`; returns it in float32."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), head_dim=16, **{"max_position_embeddings": 256, **shape, **options})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    rows = [torch.tensor([ids_of(tokenizer, question, answer)]) for question, answer in TALKS.items()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(50):
        loss = sum(model(input_ids=row, labels=row).loss for row in rows)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.5, "it has not learned them"
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
