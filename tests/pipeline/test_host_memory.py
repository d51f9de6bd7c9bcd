"""What waits in host memory comes back bit by bit, in every order in which a GPU may do the copies."""

import pytest
import test_fast_step
import torch
from test_fast_step import SHAPE, adapted, documents, equal, learned

from tunestation.training import memory
from tunestation.training.batches import lay
from tunestation.training.fast import host
from tunestation.training.fast.host import HostEmbedding, Inputs, spread
from tunestation.training.fast.lanes import DirectLane
from tunestation.training.fast.model import Fast

LAYERS = 5
ALL = memory.Host(embedding=True, inputs=True, weights=LAYERS)


class LateLane:
    """Copies as late as a GPU may: nothing has arrived before somebody waits for it, and what is there instead is no number."""

    def __init__(self):
        self.asked, self.copied = [], 0

    def copy(self, target, source):
        if target.is_floating_point():
            target.fill_(float("nan"))
        else:
            target.fill_(255)
        self.asked.append((target, source))
        return len(self.asked)

    def wait(self, ticket):
        for target, source in self.asked[self.copied : ticket]:
            target.copy_(source)
        self.copied = max(self.copied, ticket)


@pytest.fixture(autouse=True)
def deeper(monkeypatch):
    monkeypatch.setitem(SHAPE, "num_hidden_layers", LAYERS)


@pytest.fixture(params=[DirectLane, LateLane])
def lanes(request, monkeypatch):
    """Copies at once, and copies at the last moment."""
    monkeypatch.setattr(host, "lane", lambda _device: request.param())


def choice(waits, keep_input=LAYERS):
    return memory.Choice(keep_input, 0, LAYERS - keep_input, 0, 4 * SHAPE["vocab_size"] * 16, waits)


def steps(base, waits, keep_input=LAYERS, dropout=0.2, family="llama"):
    """Two micro-batches of different lengths, an evaluation between them; and the model."""
    model = adapted(base, family, dropout=dropout).train()
    fast, found = Fast.over(model), []
    fast.keep(choice(waits, keep_input))
    torch.manual_seed(5)
    for lengths in ((7, 19), (15,)):
        found.append(learned(model, lay(documents(lengths))))
        with torch.no_grad():
            batch = lay(documents((11, 5)))
            found.append((fast.forward(**batch).loss.item(), {}))
    return found, model


@pytest.mark.parametrize(
    ("base", "waits"),
    [
        ("float32", memory.Host(True)),
        ("float32", memory.Host(inputs=True)),
        ("float32", memory.Host(weights=3)),
        ("float32", memory.Host(weights=4)),
        ("nf4", ALL),
    ],
    ids=str,
)
def test_loss_and_every_gradient_are_bit_equal_to_those_of_a_step_that_keeps_all_on_the_gpu(lanes, base, waits):
    equal(steps(base, memory.Host())[0], steps(base, waits)[0])


def test_an_embedding_that_scales_its_rows_scales_those_that_were_gathered_on_the_host(lanes):
    embedding = adapted("bfloat16", "gemma").get_base_model().model.embed_tokens
    ids = torch.tensor([[3, 1, 3]])
    assert not torch.equal(embedding(ids), embedding.weight[ids])
    embedding.padding_idx = 50  # no row of this batch
    assert torch.equal(HostEmbedding(embedding, torch.device("cpu")).gather(ids, ids.device), embedding(ids))
    equal(steps("bfloat16", memory.Host(), family="gemma")[0], steps("bfloat16", memory.Host(True), family="gemma")[0])


def test_rows_are_gathered_by_ids_that_are_on_the_host():
    """Reading those of the GPU would wait for all that it was given before."""
    model = adapted().train()
    fast, batch = Fast.over(model), lay(documents())
    fast.keep(choice(memory.Host(True)))
    wanted = fast.forward(**batch).loss
    assert torch.equal(fast.forward(**batch | {"input_ids": torch.zeros_like(batch["input_ids"])}).loss, wanted)


@pytest.mark.parametrize("keep_input", [0, 1, 4])
def test_layers_that_keep_more_than_their_input_keep_it_where_it_is(lanes, keep_input):
    equal(steps("float32", memory.Host(), keep_input)[0], steps("float32", ALL, keep_input)[0])


def test_the_modules_generate_as_before(lanes):
    ids = torch.tensor([documents((9,))[0]["input_ids"]])
    before = adapted("nf4").eval()(ids).logits
    model = adapted("nf4")
    Fast.over(model).keep(choice(ALL))
    after = model.eval()(ids)
    assert torch.equal(after.logits, before)
    assert torch.equal(model(ids).logits, before)


def test_everything_comes_back_when_another_choice_is_made(lanes):
    _, model = steps("nf4", ALL)
    untouched = dict(adapted("nf4", dropout=0.2).named_parameters())
    fast = Fast.over(model)  # a second one finds what the first left
    assert isinstance(model.get_base_model().model.embed_tokens, HostEmbedding)
    del fast
    other, again = adapted("nf4"), {}
    fast = Fast.over(other)
    fast.keep(choice(ALL))
    fast.keep(choice(memory.Host()))
    again = dict(other.named_parameters())
    assert again.keys() == untouched.keys()
    for name, weight in untouched.items():
        assert torch.equal(again[name], weight), name
    fast.keep(choice(ALL))
    fast.forget()
    assert all(torch.equal(weight, untouched[name]) for name, weight in other.named_parameters())


def test_no_more_than_two_layers_weights_and_inputs_are_on_the_gpu(monkeypatch):
    monkeypatch.setattr(host, "lane", lambda _device: DirectLane())
    model = adapted("nf4").train()
    fast = Fast.over(model)
    fast.keep(choice(ALL))
    weights = {module.weight.untyped_storage().data_ptr() for name, module in model.named_modules() if name.endswith("base_layer")}
    assert len(weights) == 2
    most, take = [], Inputs.take
    monkeypatch.setattr(Inputs, "take", lambda self, *given: (take(self, *given), most.append(len(self.coming)))[0])
    learned(model, lay(documents()))
    assert most == [1] * (LAYERS - 1) + [0]


def test_a_wait_that_is_left_out_is_noticed(monkeypatch):
    """The late lane is a test of the step only if it sees such a mistake."""
    before = steps("nf4", memory.Host())[0][0]
    monkeypatch.setattr(host, "lane", lambda _device: LateLane())
    for broken in ("inputs", "weights"):
        with monkeypatch.context() as patch:
            patch.setattr(LateLane, "wait", lambda self, ticket: None)
            waits = memory.Host(inputs=broken == "inputs", weights=LAYERS * (broken == "weights"))
            loss, gradients = steps("nf4", waits)[0][0]
        assert loss != before[0] or any(not torch.equal(gradient, before[1][name]) for name, gradient in gradients.items())


def test_layers_in_host_memory_lie_at_equal_distances():
    assert spread(32, 3) == [0, 10, 21]
    assert spread(8, 8) == list(range(8))
    assert test_fast_step.SHAPE is SHAPE
