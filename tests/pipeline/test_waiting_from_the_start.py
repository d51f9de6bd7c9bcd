"""A model of which weights wait in host memory from before it is loaded: what is on the GPU meanwhile, and what training makes of it."""

import bitsandbytes as bnb
import pytest
import torch
from station import history, recipe, record, sums
from test_fast_step import SHAPE, adapted
from test_host_memory import choice
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from waiting import ALL

from tunestation.errors import TunestationError
from tunestation.recipe.schema import Runtime
from tunestation.recipe.train import Train
from tunestation.training import foresight, memory
from tunestation.training.fast import host
from tunestation.training.fast.model import Fast
from tunestation.training.model import load_base

LAYERS, WAITING, MATRICES = 5, 3, 7
NF4 = {"type": "nf4", "double_quant": True}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE | {"num_hidden_layers": LAYERS})).save_pretrained(tmp_path)
    return tmp_path


def four_bit(model):
    return {name: module.weight for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}


@pytest.mark.parametrize("double_quant", [True, False])
def test_codes_and_scales_are_those_of_loading_onto_the_gpu(folder, double_quant):
    wanted, found = (
        four_bit(load_base(folder, NF4 | {"double_quant": double_quant}, host=waits))
        for waits in (memory.ALL_THERE, memory.Host(True, True, WAITING))
    )
    assert wanted.keys() == found.keys() and len(found) == LAYERS * MATRICES
    for name, weight in wanted.items():
        one, other = ([part.tensor for part in host.tensors(found)] for found in (weight, found[name]))
        assert len(one) == 2 + double_quant and all(map(torch.equal, one, other)), name
        assert torch.equal(weight.quant_state.code, found[name].quant_state.code)
        assert found[name].quant_state is not weight.quant_state and not found[name].requires_grad


class Gpu:
    """Counts what quantising has taken and made that is still there."""

    def __init__(self, quantise):
        self.quantise, self.whole, self.made, self.most = quantise, [], [], []

    def __call__(self, weight, *given, **options):
        self.most.append(tuple(len({ref.cdata for ref in refs if not ref.expired()}) for refs in (self.whole, self.made)))
        codes, state = self.quantise(weight, *given, **options)
        self.whole.append(StorageWeakRef(weight.untyped_storage()))
        self.made += [StorageWeakRef(tensor.untyped_storage()) for tensor in (codes, state.absmax, state.state2.absmax)]
        return codes, state


def test_no_more_than_one_matrix_is_on_the_gpu_beside_those_that_stay(folder, monkeypatch):
    gpu = Gpu(bnb.functional.quantize_4bit)
    monkeypatch.setattr(bnb.functional, "quantize_4bit", gpu)
    model = load_base(folder, NF4, host=memory.Host(True, True, WAITING))
    stay = [index // MATRICES not in host.spread(LAYERS, WAITING) for index in range(LAYERS * MATRICES)]
    assert gpu.most == [(min(index, 1), 3 * sum(stay[:index])) for index in range(len(stay))]
    assert all(ref.expired() for ref in gpu.whole)
    assert len(four_bit(model)) == len(stay)


def test_only_4_bit_weights_go_to_the_gpu_and_only_where_something_waits(folder, monkeypatch):
    monkeypatch.setattr("tunestation.training.model.device", lambda: torch.device("meta"))
    model = load_base(folder, NF4, host=memory.Host(True))
    on_gpu = {name for name, weight in model.named_parameters() if weight.is_meta}
    assert on_gpu == {f"{name}.weight" for name in four_bit(model)}
    monkeypatch.undo()
    assert type(load_base(folder, NF4).hf_quantizer) is Bnb4BitHfQuantizer


def test_changing_what_waits_never_has_more_on_the_gpu_than_before_or_after(monkeypatch):
    monkeypatch.setitem(SHAPE, "num_hidden_layers", LAYERS)
    away, seen, make, frozen = [], [], host.on_host, host._frozen
    monkeypatch.setattr(host, "on_host", lambda *given: away.append(make(*given)) or away[-1])
    fast = Fast.over(adapted("nf4"))

    def there():
        places = {tensor.untyped_storage().data_ptr() for tensor in away}
        found = [frozen(layer) for layer in fast.model.model.layers]
        slots = fast.waiting.weights.slots if fast.waiting.weights else []
        held = {slot.untyped_storage().data_ptr() for slot in slots}
        first = [parts[0].tensor for parts in found]
        full = [codes.numel() and codes.untyped_storage().data_ptr() not in places | held for codes in first]
        return sum(map(bool, full)) + len(slots)

    monkeypatch.setattr(host, "_frozen", lambda layer: seen.append(there()) or frozen(layer))
    for count in (3, 5, 4, 0, 5, 3):
        before, seen[:] = there(), []
        fast.waiting.become(choice(memory.Host(True, True, count)))
        assert seen and max(seen) <= max(before, there())
        assert there() == (LAYERS - count + 2 if count else LAYERS)


def test_what_goes_on_waiting_is_not_copied_again(monkeypatch):
    monkeypatch.setitem(SHAPE, "num_hidden_layers", LAYERS)
    fast = Fast.over(adapted("nf4"), memory.Host(True, True, WAITING))
    weights, table = fast.waiting.weights, fast.model.model.embed_tokens.table
    fast.keep(choice(memory.Host(True, True, WAITING)))
    assert fast.waiting.weights is weights and fast.model.model.embed_tokens.table is table
    assert len(fast.waiting.inputs.away) == LAYERS - 1


def foreseen(gib, family="llama", **changes):
    config = LlamaConfig(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, vocab_size=128_000)
    config.model_type = family
    settings = Train(**{"method": "qlora"} | changes).model_dump()
    return foresight.waits(config, settings, Runtime().model_dump(), 2048, round(gib * memory.GIB))


def test_what_waits_is_foreseen_from_the_free_memory_and_the_models_shape():
    assert foreseen(24) == memory.ALL_THERE
    assert foreseen(1).weights > 3 and foreseen(1).embedding
    assert foreseen(1, "unknown") == foreseen(1, method="full") == memory.ALL_THERE


def learned(result):
    """All that training writes, optimizer and scales of the frozen base included, but what it tells of itself."""
    return {name: digest for name, digest in sums(result).items() if name.startswith("checkpoints")}


@pytest.mark.parametrize("base", ["nf4", "bf16", "fp8"])
def test_training_learns_the_same_bytes(station, train_as, base):
    station.write(recipe(name=f"there-{base}", train={"base": {"type": base}}, runtime={"gradient_checkpointing": True}))
    wanted = station.make("train", name=f"there-{base}")
    for name in ("run", "run_and_come_back") if base != "fp8" else ("run_and_come_back",):
        train_as(f"waiting:{name}")
        found = station.make("train", name=f"there-{base}", force=True)
        assert ("host memory: the embedding" in record(found)["observed"]["step"]) is (name == "run")
        assert learned(found) == learned(wanted) and learned(found)
        assert history(found, "loss") == history(wanted, "loss")


def test_training_that_was_stopped_goes_on_from_its_checkpoint(station, train_as):
    station.write(recipe(name="whole", runtime={"gradient_checkpointing": True}))
    station.write(recipe(name="parted", runtime={"gradient_checkpointing": True}))
    wanted = station.make("train", name="whole")
    train_as("waiting:stop")
    with pytest.raises(TunestationError, match="stopped at step 1 of"):
        station.make("train", name="parted")
    train_as("waiting:run")
    found = station.make("train", name="parted")
    assert ALL.told[0] in record(found)["observed"]["step"]
    assert learned(found) == learned(wanted)
