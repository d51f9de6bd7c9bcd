"""The frozen base in 8-bit floats: nearer to the model than NF4 in every layer, and gradients that follow."""

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from test_fast_step import adapted, choice, documents, equal, learned, same
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunestation.pipeline.volumes import PACKAGE
from tunestation.training.batches import Collate, lay
from tunestation.training.fast import float8, ops
from tunestation.training.fast.kept import Keep
from tunestation.training.fast.model import Fast

STARTER = PACKAGE / "starter" / "model"
ASKED = ["Who are you?", "What is 8 + 5?", "你是谁？", "法国的首都是哪里？", "Tell me a story about a fox and a river."]


def layers_with_inputs():
    """Every linear layer of the starter model but its head -> what it reads when it is asked something."""
    model = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.bfloat16)
    tokenizer, seen = AutoTokenizer.from_pretrained(STARTER), {}
    for name, module in model.model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, given, name=name: seen.setdefault(name, []).append(given[0][0]))
    with torch.no_grad():
        for text in ASKED:
            model(tokenizer.apply_chat_template([{"role": "user", "content": text}], return_tensors="pt", return_dict=True)["input_ids"])
    return {name: (model.model.get_submodule(name), torch.cat(rows)) for name, rows in seen.items()}


@torch.no_grad()
def test_every_layer_of_a_trained_model_is_nearer_to_itself_in_8_bits_than_in_nf4():
    found = layers_with_inputs()
    assert len(found) == 42
    for name, (linear, x) in found.items():
        exact = linear(x).float()
        eight = float8.multiply(ops.quantise_rows(x), float8.Float8Linear(linear, torch.device("cpu")).by_rows, None, x.dtype).float()
        packed = bnb.nn.Params4bit(linear.weight.data.clone(), requires_grad=False, quant_type="nf4").to("cpu")
        four = (x @ dequantize_4bit(packed.data, packed.quant_state).t()).float()
        assert (eight - exact).norm() < 0.6 * (four - exact).norm(), name


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_over_an_8_bit_base_gradients_are_those_of_16_bit_within_its_rounding(targets):
    model, rows = adapted("bfloat16", targets=targets), documents()
    before = learned(model, Collate(0)(rows))
    float8.quantise_base(model, torch.device("cpu"))
    Fast.over(model)
    same(before, learned(model, lay(rows)), 0.25)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("family", "targets"), [("llama", ["q_proj", "up_proj"]), ("qwen2", "all-linear"), ("phi3", "all-linear")])
def test_over_an_8_bit_base_what_is_kept_changes_no_bit(family, targets, dropout):
    found = []
    for keep in (Keep.MORE, Keep.ALL, Keep.ATTENTION, Keep.INPUT):
        model = adapted("bfloat16", family, dropout, targets).train()
        float8.quantise_base(model, torch.device("cpu"))
        Fast.over(model).keep(choice([keep] * 3, 0))
        torch.manual_seed(5)
        found.append(learned(model, lay(documents())))
    equal(found[:1] * (len(found) - 1), found[1:])
