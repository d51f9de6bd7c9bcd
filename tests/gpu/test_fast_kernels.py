"""Each Triton kernel of the fast step against its definition in torch, which runs on the CPU."""

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit

pytest.importorskip("triton")

from tunestation.training.fast import kernels, nf4, ops, product_kernels
from tunestation.training.fast.attention import Documents, attend

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
DEVICE = "cuda"
ROWS, COLUMNS, PAD = 37, 320, 24


def numbers(*shape, dtype=torch.bfloat16):
    """Random values."""
    return torch.randn(shape).to(dtype)


def strided(rows, columns, dtype=torch.bfloat16):
    """Two equal sets of unwritten rows with room behind each: for the CPU, and for the kernel."""
    return [torch.full((rows, columns + PAD), float("nan"), dtype=dtype, device=device)[:, :columns] for device in ("cpu", DEVICE)]


def near(found, wanted, limit=4e-3):
    """Agreement to rounding in 16 bits; anything unwritten is nan and never near."""
    wanted = wanted.float()
    assert (found.cpu().float() - wanted).norm() <= limit * wanted.norm()


def eights(rows, columns, wanted):
    """Room for 8-bit copies, on the CPU and where kernels run."""
    return [ops.empty_eight(rows, columns, torch.device(device)) if wanted else None for device in ("cpu", DEVICE)]


def near_eight(found, wanted):
    """The same 8-bit numbers, but for a few on the edge between two."""
    if wanted:
        near(found[1], wanted[1], 1e-2)
        near(found[0].cpu().float() * found[1].cpu(), wanted[0].float() * wanted[1], 1e-2)


@pytest.mark.parametrize("eight", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_norm(add, eight):
    h, weight, added = numbers(ROWS, COLUMNS), numbers(COLUMNS), numbers(ROWS, COLUMNS) if add else None
    outs, totals = strided(ROWS, COLUMNS), [torch.empty_like(h), torch.empty_like(h, device=DEVICE)] if add else [None, None]
    small = eights(ROWS, COLUMNS, eight)
    ops.rms_norm(h, weight, 1e-6, outs[0], added, totals[0], small[0])
    kernels.rms_norm(h.to(DEVICE), weight.to(DEVICE), 1e-6, outs[1], added.to(DEVICE) if add else None, totals[1], small[1])
    near(outs[1], outs[0])
    near_eight(small[1], small[0])
    if add:
        near(totals[1], totals[0], 0)


@pytest.mark.parametrize("past", [False, True])
def test_gradient_of_the_norm(past):
    grad, h, weight, residual = numbers(ROWS, COLUMNS), numbers(ROWS, COLUMNS), numbers(COLUMNS), numbers(ROWS, COLUMNS) if past else None
    outs = strided(ROWS, COLUMNS)
    theirs = grad.to(DEVICE)
    ops.rms_norm_backward(grad, h, weight, 1e-6, outs[0], residual)
    kernels.rms_norm_backward(theirs, h.to(DEVICE), weight.to(DEVICE), 1e-6, outs[1], residual.to(DEVICE) if past else None)
    near(outs[1], outs[0])
    near(theirs, grad)


@pytest.mark.parametrize("eight", [False, True])
@pytest.mark.parametrize("columns", [COLUMNS, 5000])
def test_swiglu_and_its_gradient(columns, eight):
    gate_up, outs, small = numbers(ROWS, 2 * columns), strided(ROWS, columns), eights(ROWS, columns, eight)
    ops.swiglu(gate_up, outs[0], small[0])
    kernels.swiglu(gate_up.to(DEVICE), outs[1], small[1])
    near(outs[1], outs[0])
    near_eight(small[1], small[0])
    grads, outs, small = numbers(ROWS, columns), strided(ROWS, 2 * columns), eights(ROWS, 2 * columns, eight)
    theirs = grads.to(DEVICE)
    ops.swiglu_backward(gate_up, grads, outs[0], small[0])
    kernels.swiglu_backward(gate_up.to(DEVICE), theirs, outs[1], small[1])
    near(outs[1], outs[0])
    near_eight(small[1], small[0])
    near(theirs, grads)


@pytest.mark.parametrize("sign", [1, -1])
def test_rotary(sign):
    x, cos, sin = numbers(ROWS, 20, 64), numbers(ROWS, 32), numbers(ROWS, 32)
    here, there = x.clone(), x.to(DEVICE)
    ops.rotate(here, cos, sin, here, sign)
    kernels.rotate(there, cos.to(DEVICE), sin.to(DEVICE), there, sign)
    near(there, here)


def test_copy_to_strided_rows():
    x, outs = numbers(ROWS, COLUMNS), strided(ROWS, COLUMNS)
    kernels.copy(x.to(DEVICE), outs[1])
    near(outs[1], x, 0)


@pytest.mark.parametrize("rank", [8, 64, 192])
@pytest.mark.parametrize("turned", [False, True])
def test_adding_a_product_of_low_rank(rank, turned):
    y, tail, b = numbers(150, 200), numbers(150, rank), numbers(rank, 200).t() if turned else numbers(200, rank)
    outs = strided(150, 200)
    for out in outs:
        out.copy_(y)
    product_kernels.add_low_rank(outs[1], tail.to(DEVICE), b.to(DEVICE), 0.25)
    near(outs[1], y.float() + 0.25 * tail.float() @ b.float().t())


@pytest.mark.parametrize("columns", [1000, 9001])
def test_cross_entropy(columns):
    logits, targets = numbers(ROWS, columns) * 3, torch.randint(columns, (ROWS,))
    theirs, losses = logits.to(DEVICE), [torch.empty(ROWS), torch.empty(ROWS, device=DEVICE)]
    ops.cross_entropy(logits, targets, losses[0])
    product_kernels.cross_entropy(theirs, targets.to(DEVICE), losses[1])
    near(losses[1], losses[0], 1e-5)
    near(theirs, logits)


@pytest.mark.parametrize("add", [False, True])
def test_dropout_draws_the_same_mask(add):
    x, added, outs = numbers(ROWS, COLUMNS), numbers(ROWS, COLUMNS) if add else None, strided(ROWS, COLUMNS)
    ops.dropout(x, 0.3, 2**31 - 5, outs[0], added)
    kernels.dropout(x.to(DEVICE), 0.3, 2**31 - 5, outs[1], added.to(DEVICE) if add else None)
    near(outs[1], outs[0], 1e-3)


def test_rows_in_8_bit():
    x = strided(ROWS, COLUMNS)
    x[0].copy_(numbers(ROWS, COLUMNS))
    x[1].copy_(x[0])
    (_, found), wanted = eights(ROWS, COLUMNS, True), ops.quantise_rows(x[0])
    kernels.quantise_rows(x[1], *found)
    near_eight(found, wanted)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", [(64, 128), (193, 1024), (5, 64)])
def test_nf4_to_the_bit_of_bitsandbytes(shape, nested):
    weight = bnb.nn.Params4bit(numbers(*shape) * 0.3, requires_grad=False, quant_type="nf4", compress_statistics=nested).to(DEVICE)
    out = torch.full((shape[0], shape[1] + PAD), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    state = weight.quant_state
    table = (state.state2.code, state.state2.absmax, state.offset) if nested else None
    product_kernels.dequantise_nf4(weight.data.view(-1), state.code, state.absmax, table, out[:, : shape[1]])
    assert torch.equal(out[:, : shape[1]], dequantize_4bit(weight.data, state))
    assert out[:, shape[1] :].isnan().all()
    assert nf4.supported(weight)


@pytest.mark.parametrize("lengths", [(64, 64, 64), (3, 100, 41, 64)])
def test_attention_over_documents_and_its_gradient(lengths):
    tokens = sum(lengths)
    q, k, v, grad = numbers(tokens, 8, 64), numbers(tokens, 2, 64), numbers(tokens, 2, 64), numbers(tokens, 8, 64)
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    found = []
    for device in ("cpu", DEVICE):
        mine = [x.to(device).float() if device == "cpu" else x.to(device) for x in (q, k, v)]
        mine = [x.requires_grad_() for x in mine]
        out = attend(*mine, Documents(cu.to(device), max(lengths), tokens), 0.125)
        out.backward(grad.to(device, out.dtype))
        found.append([out, *(x.grad for x in mine)])
    for wanted, mine in zip(*found, strict=True):
        near(mine, wanted.detach(), 2e-2)
