"""What a plan counts, against the tensors that are really there: of adapters, of what autograd keeps, and of DeepSpeed."""

import json

import pytest
import torch
from counting import SHAPE, VOCABULARY, Alive, engine
from peft import LoraConfig, get_peft_model
from station import PATIENCE, forks, free_port
from test_fast_step import FAMILIES, adapted, documents
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from tunestation.training import zero
from tunestation.training.fast.model import Fast
from tunestation.training.learned import learned
from tunestation.training.loss import summed_loss
from tunestation.training.memory import Shape
from tunestation.training.model import trainable
from tunestation.training.packed import documents as packs
from tunestation.training.packed import pack
from tunestation.training.stock import Stock


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_counted_as_peft_counts_them(family):
    model = adapted("bfloat16", family)
    shape = Fast.over(model).shape
    assert shape.adapters == trainable(model)
    if family not in ("qwen2", "qwen3"):  # they have biases or norms of heads, a ten-thousandth of a real model
        assert shape.weights == sum(weight.numel() for weight in model.parameters()) - shape.adapters


def stock(config, method, again=False):
    dropout = method == "dropout"
    return Stock(Shape.of(config.to_dict(), 8), method == "full", "bf16", True, dropout, again, 0, "none", 1, learned("adamw", 0))


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "dropout"])
def test_what_autograd_keeps_of_a_layer_is_counted_to_the_byte(method, again):
    few, many, config = *(kept(layers, method, again) for layers in (2, 3)), llama(1)
    a_token = (many - few) / TOKENS
    if again:
        assert a_token == 2 * config.hidden_size
        return
    inputs = 5 * config.hidden_size + config.num_attention_heads * config.head_dim + config.intermediate_size
    masks = inputs if method == "dropout" else 0  # a CPU keeps what was dropped in bfloat16, a GPU in a byte
    assert a_token == stock(config, method).kept() + masks


TOKENS = 48


def llama(layers):
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
    return LlamaConfig(hidden_size=96, intermediate_size=224, num_hidden_layers=layers, vocab_size=500, **heads)


def kept(layers, method, again):
    """Bytes that autograd saves in a forward pass, weights left out."""
    model = LlamaForCausalLM(llama(layers)).bfloat16().train()
    pack(model)
    if method != "full":
        lora = LoraConfig(r=8, lora_dropout=0.1 * (method == "dropout"), target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    if again:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    batch, found = packs(documents([TOKENS])), {}
    labels = batch.pop("labels")

    def keep(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = summed_loss(model(**batch, use_cache=False).logits, labels)
    assert loss > 0
    return sum(tensor.untyped_storage().nbytes() for place, tensor in found.items() if place not in own)


def test_a_logit_takes_twelve_bytes_at_the_loss_if_all_tokens_are_labelled():
    logits, labels = torch.randn(1, 65, 4000).bfloat16().requires_grad_(), torch.ones(1, 65, dtype=torch.int64)
    with Alive() as alive:
        _, made = alive.most(summed_loss, logits, labels)
    assert made == pytest.approx(12 * logits.numel(), rel=0.03)


@pytest.mark.parametrize(
    ("stage", "world", "accumulation"), [(0, 1, 2), (1, 1, 1), (2, 1, 1), (2, 1, 2), (3, 1, 2), (1, 2, 1), (2, 2, 2), (3, 2, 2)]
)
def test_what_deepspeed_takes_for_weights_that_learn_is_planned(tmp_path, stage, world, accumulation):
    found, port = tmp_path / "found.json", free_port()
    arguments = (world, port, stage, accumulation, str(found))
    workers = [forks().Process(target=engine, args=(rank, *arguments)) for rank in range(world)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE)
    measured, shape = json.loads(found.read_text()), Shape.of(SHAPE | {"vocab_size": VOCABULARY}, 8)
    count = measured["weights"]
    assert count == shape.weights
    planned = learned("adamw", stage, "none", world, accumulation > 1, count)
    assert measured["resident"] == pytest.approx(planned.resident * count, rel=0.01)
    assert measured["step"] == pytest.approx((planned.resident + planned.step) * count, rel=0.01)
    gathered = Stock(shape, True, "bf16", True, False, False, stage, "none", world, planned).gathered
    few, largest = 0.15 * count, 2 * 2 * VOCABULARY * shape.hidden * (stage > 1)  # 8 tokens' activations; a gradient on its way
    late = 2 * count * (world > 1)  # a bucket that another process has, and a thread of the collective operation not yet let go
    for when, most in (("forward", planned.held), ("backward", planned.backward)):
        assert measured[when] <= (planned.resident + most) * count + gathered + few + largest + late
        assert measured[when] >= 0.75 * ((planned.resident + most) * count + gathered * (when == "forward"))


def test_bucket_sizes_reach_deepspeed(tmp_path):
    made = zero.make(3, "none", 1, 1, 1.0)
    given = TrainingArguments(output_dir=str(tmp_path), deepspeed=made, bf16=True, use_cpu=True, per_device_train_batch_size=1)
    config = given.hf_deepspeed_config.config
    zero.set_buckets(config, 1234)
    zero.set_gathering(config, 99)
    reached = given.deepspeed_plugin.deepspeed_config["zero_optimization"]
    assert (reached["reduce_bucket_size"], reached["allgather_bucket_size"]) == (1234, 1234)
    assert (reached["stage3_prefetch_bucket_size"], reached["stage3_max_live_parameters"]) == (99, 198)
