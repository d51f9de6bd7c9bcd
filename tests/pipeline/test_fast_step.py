"""The fast step against transformers and peft: the same loss and the same gradients, whatever is kept, packed or quantised."""

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tunestation.training import memory
from tunestation.training.batches import Collate, lay
from tunestation.training.fast.dropping import draws, dropout
from tunestation.training.fast.kept import Keep
from tunestation.training.fast.model import Fast
from tunestation.training.loss import IGNORE, of_outputs

SHAPE = {
    "vocab_size": 211,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.05,
}
FAMILIES = {
    "llama": {},
    "internlm3": {"head_dim": 32, "pad_token_id": 0, "eos_token_id": 2},
    "qwen2": {},
    "mistral": {"sliding_window": 40},
    "qwen3": {"head_dim": 96},
    "gemma": {"head_dim": 32, "hidden_act": "gelu_pytorch_tanh"},
    "phi3": {"pad_token_id": 0, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}},
}
LENGTHS = (7, 19, 30, 30)


def adapted(base="float32", family="llama", dropout=0.0, targets="all-linear", rank=8, **changes):
    """A small model of random weights under adapters that are no longer zero. `base`: float32, bfloat16 or nf4."""
    torch.manual_seed(1)
    config = CONFIG_MAPPING[family](**SHAPE | FAMILIES[family] | changes)
    dtype = torch.float32 if base == "float32" else torch.bfloat16
    made = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    for name, weight in made.named_parameters():
        if "norm" in name or "bias" in name:
            weight.data.normal_(1 if "norm" in name and family != "gemma" else 0, 0.2)
    if base == "nf4":
        quantise(made)
    lora = LoraConfig(r=rank, lora_alpha=12, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")
    peft_model = get_peft_model(made, lora, autocast_adapter_dtype=False)
    for name, weight in peft_model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.05)
    return peft_model


def quantise(model):
    """Every linear layer but the head in NF4."""
    for module in list(model.model.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                layer = bnb.nn.Linear4bit(
                    child.in_features, child.out_features, bias=child.bias is not None, compute_dtype=torch.bfloat16, quant_type="nf4"
                )
                layer.load_state_dict(child.state_dict())
                layer.support_avx512bf16_for_cpu = False
                setattr(module, name, layer.to("cpu"))


def documents(lengths=LENGTHS):
    """Documents of random tokens, the second half of each learned."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in lengths:
        ids = torch.randint(0, SHAPE["vocab_size"], (length,), generator=generator).tolist()
        labels = [IGNORE] * (length // 2) + ids[length // 2 :]
        found.append({"input_ids": ids, "labels": labels, "position_ids": list(range(length))})
    return found


def packed(rows):
    """One row of several documents, as `prepare` writes a pack."""
    return [{name: [value for row in rows for value in row[name]] for name in rows[0]}]


def learned(model, batch):
    """(loss, gradients of all adapters) of one micro-batch."""
    model.zero_grad()
    labels = batch["labels"]
    loss = of_outputs(model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False), labels)
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}


def choice(levels, dense=0):
    """What layers keep, from the least to the most."""
    more = levels.count(Keep.MORE)
    least, some, all_ = (levels.count(level) for level in (Keep.INPUT, Keep.ATTENTION, Keep.ALL))
    return memory.Choice(least, some, all_ + more, dense, 4 * SHAPE["vocab_size"] * 16, more=more)


def stock_and_fast(model, rows):
    """What transformers and peft, and then the fast step make of the same rows."""
    before = learned(model, Collate(0)(rows))
    return before, Fast.over(model)


def error(one, other):
    """Relative L2 error."""
    return ((other.float() - one.float()).norm() / one.float().norm()).item()


def joined(found):
    """All gradients as one."""
    return torch.cat([grad.flatten() for grad in found[1].values()])


def same(one, other, limit):
    """Loss and each gradient agree to a relative L2 error of at most `limit`."""
    assert other[0] == pytest.approx(one[0], rel=limit)
    assert one[1].keys() == other[1].keys()
    errors = {name: error(grad, other[1][name]) for name, grad in one[1].items()}
    assert max(errors.values()) <= limit, max(errors, key=errors.get)


@pytest.mark.parametrize("lengths", [LENGTHS, (30, 30, 30)])
def test_asked_for_gradients_in_one_order_a_cpu_gives_what_it_gives_anyway(lengths):
    found = []
    for in_order in (False, True):
        model = adapted("bfloat16")
        Fast.over(model).in_order = in_order
        found.append(learned(model, lay(documents(lengths))))
    equal(*[[each] for each in found])
    assert not torch.are_deterministic_algorithms_enabled()


def equal(one, other):
    """Losses and gradients of several steps agree to the bit."""
    for (loss, gradients), (loss2, gradients2) in zip(one, other, strict=True):
        assert loss == loss2
        assert all(torch.equal(gradient, gradients2[name]) for name, gradient in gradients.items())


@pytest.mark.parametrize("keep", list(Keep))
@pytest.mark.parametrize("family", FAMILIES)
def test_in_32_bit_it_learns_what_transformers_and_peft_learn(family, keep):
    model, rows = adapted(family=family), documents()
    before, fast = stock_and_fast(model, rows)
    fast.keep(choice([keep] * 3, dense=1))
    same(before, learned(model, lay(rows)), 1e-5)


def test_biases_of_every_layer_are_added():
    model, rows = adapted(attention_bias=True, mlp_bias=True), documents()
    before, _ = stock_and_fast(model, rows)
    same(before, learned(model, lay(rows)), 1e-5)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["o_proj", "up_proj"], ["down_proj"]])
def test_layers_without_an_adapter_stay_as_they_are(targets):
    model, rows = adapted(targets=targets), documents()
    before, _ = stock_and_fast(model, rows)
    same(before, learned(model, lay(rows)), 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pack_is_worth_its_documents_alone(family):
    model, rows = adapted(family=family), documents()
    Fast.over(model)
    together = learned(model, lay(packed(rows)))
    alone = [learned(model, lay([row])) for row in rows]
    summed = {name: sum(grads[name] for _, grads in alone) for name in together[1]}
    same((sum(loss for loss, _ in alone), summed), together, 1e-5)


def test_documents_of_one_length_are_worth_the_same_as_a_batch():
    model, rows = adapted(), documents((24, 24, 24))
    before, _ = stock_and_fast(model, rows)
    same(before, learned(model, lay(rows)), 1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("base", "family"), [("bfloat16", "llama"), ("nf4", "llama"), ("bfloat16", "gemma"), ("bfloat16", "qwen3")])
def test_what_is_kept_changes_no_bit(base, family, dropout):
    found = []
    for keep in ([Keep.ALL] * 3, [Keep.MORE] * 3, [Keep.ATTENTION] * 3, [Keep.INPUT] * 3, [Keep.ALL, Keep.ATTENTION, Keep.INPUT]):
        for dense in (0, 2):
            model = adapted(base, family, dropout).train()
            Fast.over(model).keep(choice(keep, dense))
            torch.manual_seed(5)
            found.append(learned(model, lay(documents())))
    equal(found[:1] * (len(found) - 1), found[1:])


@pytest.mark.parametrize("keep", [Keep.MORE, Keep.INPUT])
@pytest.mark.parametrize(
    ("family", "targets", "rank"), [("llama", "all-linear", 8), ("llama", ["q_proj", "v_proj", "up_proj"], 3), ("phi3", "all-linear", 8)]
)
def test_dropout_is_the_one_of_peft_on_the_adapters_input(family, targets, rank, keep):
    """Each adapter's input goes through the mask that the fast step draws for its projection."""
    model, rows = adapted(family=family, dropout=0.4, targets=targets, rank=rank).train(), documents()
    fast = Fast.over(model)
    fast.keep(choice([keep] * 3, 1))
    torch.manual_seed(3)
    found = learned(model, lay(rows))
    torch.manual_seed(3)
    seed = int(torch.randint(2**31, (1,)))
    places = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "gate_proj": 2, "up_proj": 2, "down_proj": 3}
    places |= {"qkv_proj": 0, "gate_up_proj": 2}
    for index, layer in enumerate(fast.model.model.layers):
        for name, module in layer.named_modules():
            if hasattr(module, "lora_A"):
                module.lora_dropout["default"] = Mask(0.4, (seed + 4 * index + places[name.rpartition(".")[2]]) % 2**31)
    stock = learned(model, Collate(0)(packed(rows)))
    same(stock, found, 1e-5)
    assert learned(model.eval(), lay(rows))[0] != pytest.approx(found[0], rel=1e-3)


class Mask(nn.Module):
    """The dropout of one projection of one micro-batch, as torch code that autograd follows."""

    def __init__(self, p, seed):
        super().__init__()
        self.p, self.seed = p, seed

    def forward(self, x):
        mask = torch.empty_like(x[0])
        dropout(torch.ones_like(x[0]), self.p, self.seed, mask)
        return x * mask


def test_dropout_keeps_the_right_share_and_draws_anew_for_each_seed():
    x, out = torch.ones(400, 500), torch.empty(2, 400, 500)
    for index in range(2):
        dropout(x, 0.1, 77 + index, out[index])
    kept = out != 0
    assert (out[kept] == pytest.approx(1 / 0.9)) and kept.float().mean() == pytest.approx(0.9, abs=0.003)
    assert (kept[0] & kept[1]).float().mean() == pytest.approx(0.81, abs=0.004)
    beside, below = kept[:, :, 1:] & kept[:, :, :-1], kept[:, 1:] & kept[:, :-1]
    for neighbours in (beside[:, :, ::2], beside[:, :, 1::2], below):
        assert neighbours.float().mean() == pytest.approx(0.81, abs=0.004)


def test_dropout_numbers_places_by_row_and_column_whatever_the_width():
    """Each of 2^16 draws is as likely as another, and a row of odd width begins a pair of its own."""
    drawn = draws(1024, 1023, 5, torch.device("cpu"))
    assert drawn.min() >= 0 and drawn.max() < 2**16 and drawn.unique().numel() > 2**16 * 0.999
    assert torch.equal(drawn, draws(1024, 1024, 5, torch.device("cpu"))[:, :-1])


def test_held_out_loss_and_answers_take_the_same_weights():
    model, rows = adapted("nf4"), documents()
    before = learned(model.eval(), Collate(0)(rows))[0]
    Fast.over(model)
    with torch.no_grad():
        batch = lay(rows)
        assert model(**batch).loss.item() == pytest.approx(before, rel=1e-2)
        assert model.generate(input_ids=batch["input_ids"][:, :5], max_new_tokens=3, pad_token_id=0).shape == (1, 8)
