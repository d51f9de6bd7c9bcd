"""Attention that writes to where the next product reads, its gradients to where the one before reads: on a CPU by what stands in for it."""

from contextlib import nullcontext

import pytest
import torch
from test_fast_step import adapted, choice, documents, learned, same

from tunestation.training.batches import lay
from tunestation.training.fast import flash, hopper, ops, quack_loss
from tunestation.training.fast.attention import ByTorch, Documents, side_by_side
from tunestation.training.fast.float8 import quantise_base
from tunestation.training.fast.kept import Keep
from tunestation.training.fast.model import BITS, Fast

GPU = torch.device("cuda", 0)


class InPlace(ByTorch):
    """torch's attention, with results where they are wanted."""

    asked = 0
    halves = False
    """Whether of the gradients of keys and values a half is still to be added."""

    def __init__(self, q, k, v, documents, scale, out=None):
        super().__init__(q, k, v, documents, scale)
        if out is not None:
            InPlace.asked += 1
            self.result = out.unflatten(1, q.shape[1:]).copy_(self.result)

    def gradients(self, grad, outs=None):
        found, rest = super().gradients(grad)
        if InPlace.halves:
            found, rest = (found[0], *(each / 2 for each in found[1:])), [each[None] / 2 for each in found[1:]]
        return found if outs is None else [out.copy_(each) for out, each in zip(outs, found, strict=True)], rest


def over(model, monkeypatch, keep=Keep.ALL, dense=0):
    """The fast step of `model` with such an attention."""
    monkeypatch.setattr(flash, "known", lambda *_: True)
    monkeypatch.setattr("tunestation.training.fast.model.Flash", InPlace)
    monkeypatch.setattr(InPlace, "asked", 0)
    fast = Fast.over(model)
    fast.keep(choice([keep] * 3, dense))
    return fast


def both(monkeypatch, base="bfloat16", family="llama", keep=Keep.ALL, dense=0, **changes):
    """What is learned with torch's attention, and with one in place."""
    found = []
    for place in (False, True):
        model = adapted(base, family, **changes).train()
        if place:
            over(model, monkeypatch, keep, dense)
        else:
            Fast.over(model).keep(choice([keep] * 3, dense))
        torch.manual_seed(5)
        found.append(learned(model, lay(documents())))
    return found


@pytest.mark.parametrize("keep", [Keep.MORE, Keep.ALL, Keep.ATTENTION, Keep.INPUT])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3"])
def test_where_attention_writes_changes_nothing_of_what_is_learned(family, dropout, keep, monkeypatch):
    before, after = both(monkeypatch, family=family, keep=keep, dropout=dropout)
    assert InPlace.asked >= 3
    assert before[0] == after[0]
    same(before, after, 1e-3)


@pytest.mark.parametrize(("family", "times"), [("llama", 3), ("qwen2", 3), ("qwen3", 0), ("phi3", 0)])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("dense", [0, 2])
def test_nor_that_adapters_share_comes_with_the_turning(dense, dropout, family, times, monkeypatch):
    """But where heads are normalised, or queries, keys and values are one layer."""
    turned, turn = [], ops.turn_back_in_place
    monkeypatch.setattr(ops, "turn_back_in_place", lambda *given: turned.append(turn(*given)))
    before, after = both(monkeypatch, family=family, keep=Keep.MORE, dense=dense, dropout=dropout)
    assert len(turned) == times
    assert before[0] == after[0]
    same(before, after, 1e-3)


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "v_proj"], ["o_proj"], ["down_proj"]])
@pytest.mark.parametrize("dense", [0, 3])
def test_nor_with_adapters_on_some_layers_alone(targets, dense, monkeypatch):
    before, after = both(monkeypatch, targets=targets, dense=dense)
    assert before[0] == after[0]
    same(before, after, 1e-3)


def test_rows_that_begin_anywhere_are_not_written_to(monkeypatch):
    same(*both(monkeypatch, rank=4), 1e-3)
    assert InPlace.asked == 0


def test_nor_is_what_is_wanted_in_8_bits_too(monkeypatch):
    found = []
    for place in (False, True):
        model = adapted("bfloat16")
        quantise_base(model, torch.device("cpu"))
        if place:
            over(model, monkeypatch)
        else:
            Fast.over(model)
        found.append(learned(model, lay(documents())))
    assert InPlace.asked == 0
    same(*found, 1e-3)


@pytest.fixture
def asked(monkeypatch):
    """Asks as on a Hopper GPU with all packages, whose kernels agree as they are told to."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
    monkeypatch.setattr(hopper, "installed", lambda _package: True)
    monkeypatch.setattr(hopper, "_announce", lambda: None)  # it is said once in a process, by whichever test comes first

    def told(agree):
        monkeypatch.setattr(flash, "_agree", agree)
        monkeypatch.setattr(quack_loss, "_agree", agree)

    told(lambda *_: True)
    return told


def flash_known(size=128, device=GPU, dtype=torch.bfloat16):
    """Asked anew."""
    return flash.known.__wrapped__(device, dtype, (16, 8), size)


def loss_known(vocabulary, device=GPU):
    """Asked anew."""
    return quack_loss.known.__wrapped__(device, torch.bfloat16, vocabulary)


def test_it_is_taken_for_heads_as_it_has_been_measured_with(asked):
    assert flash_known() and flash_known(64)
    assert not flash_known(256) and not flash_known(100)
    assert not flash_known(device=torch.device("cpu")) and not flash_known(dtype=torch.float16)


def test_the_loss_is_taken_for_rows_that_are_read_16_bytes_at_a_time(asked):
    assert loss_known(92544) and not loss_known(32001) and not loss_known(92544, torch.device("cpu"))


def test_without_the_packages_torch_and_our_kernels_do_it_in_silence(asked, monkeypatch, capsys):
    monkeypatch.setattr(hopper, "installed", lambda _package: False)
    assert not flash_known() and not loss_known(92544)
    assert capsys.readouterr().out == ""


def test_kernels_that_give_other_results_or_do_not_run_are_left_and_that_is_said(asked, capsys):
    asked(lambda *_: False)
    assert not flash_known() and not loss_known(92544)
    assert capsys.readouterr().out == (
        "  note: FlashAttention 4's kernels give other results here; torch's attention is taken\n"
        "  note: QuACK's kernels of the loss give other results here; ours is taken\n"
    )

    def broken(*_):
        raise ImportError

    asked(broken)
    assert not flash_known()
    assert "FlashAttention 4's kernels do not run here (ImportError: no reason given); torch's" in capsys.readouterr().out


@pytest.mark.parametrize(("family", "base"), [("llama", "bfloat16"), ("llama", "fp8"), ("qwen3", "bfloat16"), ("phi3", "bfloat16")])
def test_parts_of_gradients_are_added_wherever_heads_turn_back(family, base, monkeypatch):
    found = []
    for halves in (False, True):
        model = adapted("bfloat16", family).train()
        if base == "fp8":
            quantise_base(model, torch.device("cpu"))
        monkeypatch.setattr(InPlace, "halves", halves)
        over(model, monkeypatch)
        torch.manual_seed(5)
        found.append(learned(model, lay(documents())))
    assert found[0][0] == found[1][0]
    same(*found, 1e-3)


class ByHand:
    """FlashAttention's two functions, by torch."""

    calls = 0

    def _flash_attn_fwd(self, q, k, v, out, softmax_scale, cu_seqlens_q=None, **_):
        out.copy_(self.attention(q, k, v, softmax_scale, cu_seqlens_q).result.view(out.shape))
        return out, self.sums(q)

    def _flash_attn_bwd(self, q, k, v, out, grad, sums, softmax_scale, dq, dk, dv, cu_seqlens_q=None, **_):
        ByHand.calls += 1
        made = self.attention(q, k, v, softmax_scale, cu_seqlens_q)
        assert torch.allclose(out.flatten(0, -3), made.result, atol=1e-6)
        assert torch.equal(sums, self.sums(q))
        for place, each in zip((dq, dk, dv), made.gradients(grad.flatten(0, -3))[0], strict=True):
            place.copy_(each.view(place.shape))

    @staticmethod
    def sums(q):
        """What only these queries have, as log-sums lie: for each document of a batch, else for all tokens, head by head."""
        return q[..., 0].transpose(-1, -2).contiguous()

    def attention(self, q, k, v, scale, cu):
        if cu is None:
            cu = torch.arange(0, q.shape[0] * q.shape[1] + 1, q.shape[1]).int()
        q, k, v = (x.flatten(0, -3) for x in (q, k, v))
        return ByTorch(q, k, v, Documents(cu, int(cu.diff().max()), len(q)), scale)


@pytest.mark.parametrize("heads", [(4, 2), (8, 2), (6, 2)])
@pytest.mark.parametrize("lengths", [[30, 30, 30], [7, 40, 43]])
def test_queries_of_one_key_go_backward_one_after_the_other(lengths, heads, monkeypatch):
    monkeypatch.setattr(flash, "_interface", ByHand)
    monkeypatch.setattr(ByHand, "calls", 0)
    torch.manual_seed(0)
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    where = Documents(cu, max(lengths), 90)
    (many, few), size = heads, 16
    rows, grad = torch.randn(90, (many + 2 * few) * size), torch.randn(90, many, size)
    of = side_by_side(rows, (many, few, few), size)
    wanted = ByTorch(*of, where, 0.2)
    made = flash.Flash(*of, where, 0.2)
    assert not made.apart  # so few tokens
    made.apart = True
    outs = side_by_side(torch.empty_like(rows), (many, few, few), size)
    found, rest = made.gradients(grad, outs)
    ops.add_up(rest, found[1:])
    for mine, other in zip(found, wanted.gradients(grad)[0], strict=True):
        assert torch.allclose(mine, other, atol=1e-5)
    assert ByHand.calls == many // few


@pytest.mark.parametrize(
    ("tokens", "equal", "heads", "apart"),
    [
        (8192, True, (16, 8), True),
        (8191, False, (16, 8), False),
        (8192, False, (32, 8), True),
        (8192, True, (32, 8), False),
        (8192, False, (40, 8), False),
        (8192, False, (8, 8), False),
    ],
)
def test_they_do_where_it_is_faster(tokens, equal, heads, apart):
    q, k = (torch.empty(tokens, count, 1) for count in heads)
    ends = [0, tokens] if equal else [0, 100, tokens]
    assert flash.apart(q, k, Documents(torch.tensor(ends).int(), tokens if equal else tokens - 100, tokens)) is apart


@pytest.mark.parametrize(
    ("heads", "many", "wrong"), [((4, 2), True, False), ((4, 2), True, True), ((4, 2), False, False), ((5, 1), True, False)]
)
def test_results_are_compared_with_torchs_in_every_way_that_documents_will_go(heads, many, wrong, monkeypatch):
    """Of equal lengths and of others; with queries of one key apart if they can be, of so many tokens."""
    made = []

    class Mine(ByTorch):
        def __init__(self, q, k, v, documents, scale, out=None):
            super().__init__(q, k, v, documents, scale)
            self.result = self.result * (1.1 if wrong else 1)

        def gradients(self, grad, outs=None):
            made.append((self.documents.equal, self.apart))
            return super().gradients(grad)

    monkeypatch.setattr(flash, "Flash", Mine)
    assert flash._agree(torch.device("cpu"), heads, 64, False, many) is not wrong
    tried = [(equal, apart) for apart in (False, True)[: 2 if many and heads == (4, 2) else 1] for equal in (False, True, False)]
    assert made == (tried[:1] if wrong else tried)


@pytest.mark.parametrize("wrong", [False, True])
def test_losses_and_their_gradients_are_compared(wrong, monkeypatch):
    def mine(logits, targets, losses):
        ops.cross_entropy(logits, targets, losses)
        if wrong:
            logits *= 1.1

    monkeypatch.setattr(quack_loss, "cross_entropy", mine)
    assert quack_loss._agree(torch.device("cpu"), 512) is not wrong


def test_what_made_the_bits_is_named(monkeypatch):
    fast = over(adapted("bfloat16"), monkeypatch)
    monkeypatch.setattr("tunestation.training.fast.model.version", lambda package: {"flash-attn-4": "4.0"}[package])
    assert fast.made_by == f"fast step {BITS}, FlashAttention 4.0"
    fast.loss_by_quack = True
    monkeypatch.setattr("tunestation.training.fast.model.version", lambda package: {"flash-attn-4": "4.0", "quack-kernels": "0.6"}[package])
    assert fast.made_by == f"fast step {BITS}, QuACK 0.6, FlashAttention 4.0"
