"""Packs under transformers' own step: what a block mask learns, without one."""

import pytest
import torch
from test_fast_step import SHAPE, documents, learned, packed, same
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tunestation.stages import train
from tunestation.training.batches import Collate, lay, placed
from tunestation.training.memory import Host
from tunestation.training.packed import NAME, pack, packable, packs
from tunestation.training.packed import documents as laid

EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
OTHERS = {
    "cohere": {},
    "cohere2": {"sliding_window": 40, "head_dim": 32},
    "gemma3_text": {"sliding_window": 40, "head_dim": 32},
    "glm": {"head_dim": 32, "pad_token_id": 0},
    "glm4": {"head_dim": 32, "pad_token_id": 0},
    "gpt_bigcode": {"n_embd": 128, "n_head": 4, "n_layer": 3, "n_positions": 128, "attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0},
    "starcoder2": {"residual_dropout": 0, "embedding_dropout": 0},
    "mixtral": EXPERTS,
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 64},
    "qwen3_moe": EXPERTS,
}
ROPE = {"rope_theta": 10000.0, "rope_type": "default"}


def made(family, **changes):
    """A small model of `family` in 32 bits whose weights all learn."""
    torch.manual_seed(1)
    plain = SHAPE | OTHERS.get(family, {}) | {"attention_dropout": 0, "bos_token_id": 1, "eos_token_id": 2} | changes
    usual = "eager" if family == "gemma2" else "sdpa"  # it caps scores, which SDPA cannot
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**plain), attn_implementation=usual, dtype=torch.float32)


@pytest.mark.parametrize("family", OTHERS)
def test_it_learns_what_a_block_mask_learns(family):
    model, rows = made(family), packed(documents())
    before = learned(model, Collate(0)(rows))
    assert packable(model, 30)
    pack(model)
    same(before, learned(model, placed(laid(rows), model.device)), 1e-5)


def test_it_learns_the_same_when_layers_are_computed_again():
    model, rows = made("glm").train(), packed(documents())
    pack(model)
    before = learned(model, placed(laid(rows), model.device))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    same(before, learned(model, placed(laid(rows), model.device)), 1e-6)


@pytest.mark.parametrize("collate", [laid, lay, Collate(0)])
def test_micro_batches_can_be_pinned(collate):
    """As pinning does it: a place of its own for every value, in the same order."""
    for value in collate(packed(documents())).values():
        if torch.is_tensor(value):
            assert torch.equal(torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).copy_(value), value)


def test_answers_are_those_of_sdpa():
    model, asked = made("glm").eval(), torch.tensor([[0, 0, 5, 6], [7, 8, 9, 3]])
    options = {"attention_mask": (asked != 0).long(), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    before = model.generate(asked, **options)
    pack(model)
    assert model.config._attn_implementation == NAME
    assert torch.equal(model.generate(asked, **options), before)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma2", {"head_dim": 32}),
        ("cohere2", {"sliding_window": 29}),
        ("minicpm3", {"v_head_dim": 32}),
        ("glm", {"attention_dropout": 0.1}),
    ],
)
def test_attention_that_is_not_plain_keeps_its_mask(family, changes):
    assert not packable(made(family, **changes), 30)


def test_training_takes_it_where_the_fast_step_does_not_know_the_model():
    model, settings = made("glm"), {"method": "full", "max_tokens": 30}
    machine, config = {"gradient_checkpointing": False, "deterministic": False}, {"zero_optimization": {"stage": 2}}
    assert train._fast(model, settings, machine, config, Host(), joins=False) == (None, "all weights learn")
    assert packs(model)
