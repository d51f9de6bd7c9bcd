"""What a plan counts, against the tensors that are really there: of adapters, of what autograd keeps, and of DeepSpeed."""

import json

import pytest
import torch
from counting import SHAPE, VOCABULARY, Alive, Moved, engine
from peft import LoraConfig, get_peft_model
from station import PATIENCE, forks, free_port
from test_fast_step import FAMILIES, adapted, documents
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TrainingArguments

import tunestation.models.alibi  # noqa: F401  the Auto classes know Baichuan-13B then
from tunestation.models.native.registry import NATIVE
from tunestation.recipe.schema import Runtime
from tunestation.recipe.train import Train
from tunestation.training import families, foresight, targets, zero
from tunestation.training.batches import placed
from tunestation.training.fast.model import Fast, obstacle
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


CHOSEN = [
    EVERY := "all-linear",
    ["q_proj", "v_proj", "qkv_proj"],
    ["self_attn.o_proj", "qkv_proj", "layers.1.mlp.down_proj", "up_proj", "nothing"],
    ["model.layers.0.mlp.gate_proj", "gate_up_proj"],
    r".*\.1\..*(q_proj|qkv_proj|down_proj)",
    ["q_proj", "qkv_proj", "lm_head", "embed_tokens"],
]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`", "ignore:.*tied.*")
@pytest.mark.parametrize("chosen", CHOSEN, ids=str)
@pytest.mark.parametrize("family", sorted(families.NAMED))
def test_a_list_or_a_pattern_adapts_what_peft_adapts(family, chosen):
    model = adapted("bfloat16", family, targets=chosen) if family in FAMILIES else other(family, chosen)
    config = model.get_base_model().config.to_dict()
    planned = targets.under(Shape.of(config, 8), chosen)
    assert planned.adapters == trainable(model)
    assert planned.embedding == sum(weight.numel() for name, weight in own(model).items() if "embed" in name or "lm_head" in name)
    live = foresight.setup_of(model, Train(method="lora", lora={"rank": 8}).model_dump(), Runtime().model_dump(), family in FAMILIES)
    assert live.shape == planned
    if family in FAMILIES and obstacle(model, 32) is None:
        assert Fast.over(model).shape == planned
    else:
        assert not live.fast


def other(family, chosen):
    """A small model of a family that the fast step does not know, under adapters."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = CONFIG_MAPPING[family](**sizes, head_dim=16, vocab_size=300, pad_token_id=0)
    lora = LoraConfig(r=8, target_modules=chosen, task_type="CAUSAL_LM")
    return get_peft_model(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), lora, autocast_adapter_dtype=False)


def own(model):
    """Name -> weight that is not an adapter's."""
    return {name: weight for name, weight in model.named_parameters() if "lora_" not in name}


def test_families_whose_class_ties_the_head_are_known():
    assert {name for name in NATIVE if CONFIG_MAPPING[name]().tie_word_embeddings} == families.TIED
    silent = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
    assert Shape.of(silent | {"model_type": "gemma"}, 8).tied and not Shape.of(silent | {"model_type": "llama"}, 8).tied
    assert not Shape.of(silent | {"model_type": "gemma", "tie_word_embeddings": False}, 8).tied


METHODS = ["full", "lora", "dropout", "autocast", "autocast dropout"]
"""What learns; adapters are in fp32 under autocast without DeepSpeed."""
TOKENS = 48


def stock(config, method, again=False, chosen=EVERY):
    stage = None if "autocast" in method else 0
    shape = targets.under(Shape.of(config.to_dict(), 8), chosen)
    return Stock(shape, method == "full", "bf16", True, "dropout" in method, again, stage, "none", 1, learned("adamw", stage))


def llama(layers, vocabulary=500):
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
    return LlamaConfig(hidden_size=96, intermediate_size=224, num_hidden_layers=layers, vocab_size=vocabulary, **heads)


def made(config, method, again=False, chosen=EVERY):
    """A model to train by `method`."""
    model = LlamaForCausalLM(config).bfloat16().train()
    pack(model)
    if method != "full":
        lora = LoraConfig(r=8, lora_dropout=0.1 * ("dropout" in method), target_modules=chosen, task_type="CAUSAL_LM")
        model = get_peft_model(model, lora, autocast_adapter_dtype="autocast" in method)
    if again:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def forward(model, method, tokens=TOKENS):
    """The loss of one document."""
    batch = placed(packs(documents([tokens])), torch.device("cpu"))
    labels = batch.pop("labels") % model.config.vocab_size
    batch["input_ids"] %= model.config.vocab_size
    with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in method):
        return summed_loss(model(**batch, use_cache=False).logits, labels)


def masks(config, method):
    """Bytes of a token: a CPU keeps what was dropped in as many bytes as what it was dropped from, a GPU in one."""
    inputs = 5 * config.hidden_size + config.num_attention_heads * config.head_dim + config.intermediate_size
    return {"dropout": inputs, "autocast dropout": 3 * inputs}.get(method, 0)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_what_autograd_keeps_of_a_layer_is_counted_to_the_byte(method, again):
    few, many, config = *(kept(layers, method, again) for layers in (2, 3)), llama(1)
    planned = stock(config, method)
    a_token = (many - few - planned.cast * (not again)) / TOKENS
    if again:
        assert a_token == 2 * config.hidden_size
        return
    assert a_token == planned.kept() + masks(config, method)


@pytest.mark.parametrize("method", ["lora", "dropout", "autocast"])
def test_what_autograd_keeps_is_counted_where_only_some_layers_are_adapted(method):
    chosen = ["q_proj", "v_proj", "mlp.up_proj"]
    planned = stock(llama(1), method, chosen=chosen)
    found = kept(3, method, False, chosen) - kept(2, method, False, chosen)
    dropped = (2 * 96 + 96) * (method == "dropout")
    assert found == TOKENS * (planned.kept() + dropped) + planned.cast


def kept(layers, method, again, chosen=EVERY):
    """Bytes that autograd saves in a forward pass, weights left out."""
    model, found = made(llama(layers), method, again, chosen), {}
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}

    def keep(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward(model, method)
    assert loss > 0
    return sum(tensor.untyped_storage().nbytes() for place, tensor in found.items() if place not in own)


@pytest.mark.parametrize("vocabulary", [64, 2000])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("method", ["lora", "autocast"])
def test_the_worst_moment_of_a_step_is_planned(method, again, vocabulary):
    config, tokens = llama(4, vocabulary), 1024
    model = made(config, method, again)
    with Alive() as alive:
        _, most = alive.most(lambda: forward(model, method, tokens).backward())
    _, activations, gradients = stock(config, method, again).worst(tokens)
    assert most == pytest.approx(activations + gradients, rel=0.08)


@pytest.mark.parametrize("chosen", [EVERY, ["q_proj", "v_proj", "down_proj"]])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "autocast"])
def test_bytes_that_operations_beside_the_products_move_are_counted(method, again, chosen):
    few, many = ([moved(layers, method, again, chosen, tokens) for layers in (2, 3)] for tokens in (32, 64))
    a_token = (many[1] - many[0] - few[1] + few[0]) / 32
    shape = stock(llama(1), method, again, chosen).shape
    products = 6 * sum(one.members * one.inputs + one.adapted for one in shape.products) * (method != "full")
    assert a_token == pytest.approx(stock(llama(1), method, again, chosen).moved() - products, rel=0.06)


def moved(layers, method, again, chosen, tokens):
    model = made(llama(layers), method, again, chosen)
    with Moved() as moved:
        forward(model, method, tokens).backward()
    return moved.bytes


def test_a_logit_takes_twelve_bytes_at_the_loss_if_all_tokens_are_labelled():
    logits, labels = torch.randn(1, 65, 4000).bfloat16().requires_grad_(), torch.ones(1, 65, dtype=torch.int64)
    with Alive() as alive:
        loss, made = alive.most(summed_loss, logits, labels)
        _, backward = alive.most(loss.backward)
    assert made == pytest.approx((12 - 2) * logits.numel(), rel=0.03)  # the logits are there before
    assert backward == pytest.approx(12 * logits.numel(), rel=0.03)  # and no longer needed then


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
