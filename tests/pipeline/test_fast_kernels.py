"""Each Triton kernel of the fast step against its definition in torch: on a GPU, else in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
"""Of what kernels read and write; the interpreter cuts bfloat16 and 8-bit floats off instead of rounding them."""
pytest.importorskip("triton")

from tunestation.training.fast import (  # noqa: E402
    dropping,
    dropping_kernels,
    kernels,
    low_rank_kernels,
    ops,
    product_kernels,
)
from tunestation.training.fast.attention import Documents, attend  # noqa: E402

pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
ROWS, COLUMNS, PAD = 37, 320, 24


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def numbers(*shape, dtype=DTYPE):
    """Random values."""
    return torch.randn(shape).to(dtype)


def moved(x):
    """A copy where kernels run."""
    return None if x is None else x.to(DEVICE, copy=True)


def strided(rows, columns, dtype=DTYPE):
    """Two equal sets of unwritten rows with room behind each: for the CPU, and for the kernel."""
    return [torch.full((rows, columns + PAD), float("nan"), dtype=dtype, device=device)[:, :columns] for device in ("cpu", DEVICE)]


def near(found, wanted, limit=4e-3):
    """Agreement to rounding in 16 bits; anything unwritten is nan and never near."""
    assert (found.cpu().float() - wanted.float()).norm() <= limit * wanted.float().norm()


def eights(rows, columns, wanted):
    """Room for 8-bit copies, on the CPU and where kernels run."""
    return [ops.empty_eight(rows, columns, torch.device(device)) if wanted else None for device in ("cpu", DEVICE)]


def dropped(rows, columns, wanted):
    """Room for what dropout leaves, on the CPU and where kernels run."""
    spaces = [torch.full((rows, columns), float("nan"), dtype=DTYPE, device=device) for device in ("cpu", DEVICE)]
    return [dropping.Dropped(space, 0.3, 2**31 - 5) if wanted else None for space in spaces]


def near_dropped(found, wanted):
    """The same places are kept, with the same values."""
    if wanted:
        near(found.out, wanted.out, 1e-2)
        assert 0.2 < (found.out == 0).float().mean() < 0.4


def near_eight(found, wanted):
    """The same 8-bit numbers, but for a few on the edge between two."""
    if wanted:
        near(found[1], wanted[1], 1e-2)
        near(found[0].cpu().float() * found[1].cpu(), wanted[0].float() * wanted[1], 1e-2 if DEVICE == "cuda" else 8e-2)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("eight", [False, True])
def test_norm(eight, drop):
    h, weight, outs = numbers(ROWS, COLUMNS), numbers(COLUMNS), strided(ROWS, COLUMNS)
    small, drawn = eights(ROWS, COLUMNS, eight), dropped(ROWS, COLUMNS, drop)
    ops.rms_norm(h, weight, 1e-6, outs[0], small[0], drawn[0])
    kernels.rms_norm(moved(h), moved(weight), 1e-6, outs[1], small[1], drawn[1])
    near(outs[1], outs[0])
    near_dropped(drawn[1], drawn[0])
    near_eight(small[1], small[0])


@pytest.mark.parametrize("eight", [False, True])
@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("result", [False, True])
def test_gradient_of_the_norm(result, past, eight):
    grad, h, weight, residual = numbers(ROWS, COLUMNS), numbers(ROWS, COLUMNS), numbers(COLUMNS), numbers(ROWS, COLUMNS) if past else None
    outs, small = strided(ROWS, COLUMNS), eights(ROWS, COLUMNS, eight)
    theirs, before = moved(grad), grad.clone()
    ops.rms_norm_backward(grad, h, weight, 1e-6, outs[0], residual, small[0], result)
    kernels.rms_norm_backward(theirs, moved(h), moved(weight), 1e-6, outs[1], moved(residual), small[1], result)
    near(outs[1], outs[0])
    near_eight(small[1], small[0])
    near(theirs, grad)
    assert torch.equal(grad, before) is not result


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("eight", [False, True])
@pytest.mark.parametrize("columns", [COLUMNS, 5000])
def test_gated_units_and_their_gradient(columns, eight, gelu):
    gate_up, outs, small = numbers(ROWS, 2 * columns), strided(ROWS, columns), eights(ROWS, columns, eight)
    drawn = dropped(ROWS, columns, not gelu)
    ops.glu(gate_up, outs[0], gelu, small[0], drawn[0])
    kernels.glu(moved(gate_up), outs[1], gelu, small[1], drawn[1])
    near(outs[1], outs[0])
    near_eight(small[1], small[0])
    near_dropped(drawn[1], drawn[0])
    grads, outs, small = numbers(ROWS, columns), strided(ROWS, 2 * columns), eights(ROWS, 2 * columns, eight)
    theirs = moved(grads)
    ops.glu_backward(gate_up, grads, outs[0], gelu, small[0])
    kernels.glu_backward(moved(gate_up), theirs, outs[1], gelu, small[1])
    near(outs[1], outs[0])
    near_eight(small[1], small[0])
    near(theirs, grads)
    before = grads.clone()
    ops.glu_backward(gate_up, grads, outs[0], gelu, result=False)
    kernels.glu_backward(moved(gate_up), theirs, outs[1], gelu, None, result=False)
    near(outs[1], outs[0])
    near(theirs, before)
    near(grads, before, 0)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("eight", [False, True])
def test_copy_to_strided_rows(eight, drop):
    x, outs, small, drawn = numbers(ROWS, COLUMNS), strided(ROWS, COLUMNS), eights(ROWS, COLUMNS, eight), dropped(ROWS, COLUMNS, drop)
    ops.copy(x, outs[0], small[0], drawn[0])
    kernels.copy(moved(x), outs[1], small[1], drawn[1])
    near(outs[1], x, 0)
    near_dropped(drawn[1], drawn[0])
    near_eight(small[1], small[0])


@pytest.fixture(params=[(150, False), (150, True), (2100, True)], ids=["a tile", "one tile ahead", "strips"])
def rows_of_tiles(request, monkeypatch):
    """How many rows there are, where a program has little shared memory or much."""
    monkeypatch.setattr(low_rank_kernels, "ample", lambda _device: request.param[1])
    return request.param[0]


@pytest.mark.parametrize("rank", [8, 64, 192])
@pytest.mark.parametrize("turned", [False, True])
def test_adding_a_product_of_low_rank(rows_of_tiles, rank, turned):
    y, tail, b = numbers(rows_of_tiles, 200), numbers(rows_of_tiles, rank), numbers(rank, 200).t() if turned else numbers(200, rank)
    outs = [out.copy_(y) for out in strided(rows_of_tiles, 200)]
    low_rank_kernels.add_low_rank(outs[1], moved(tail), moved(b))
    near(outs[1], y.float() + tail.float() @ b.float().t())


@pytest.mark.parametrize("rank", [8, 64, 192])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_a_product_of_low_rank_is_dropped_in_places_and_comes_with_another_summand(rows_of_tiles, p, rank):
    y, tail, b, added = (numbers(*shape) for shape in ((rows_of_tiles, 200), (rows_of_tiles, rank), (200, rank), (rows_of_tiles, 200)))
    outs = [out.copy_(y) for out in strided(rows_of_tiles, 200)]
    ops.add_low_rank(outs[0], tail, b, added, p, 2**31 - 5)
    low_rank_kernels.add_low_rank(outs[1], moved(tail), moved(b), moved(added), p, 2**31 - 5)
    near(outs[1], outs[0], 1e-2)


@pytest.mark.parametrize("rank", [8, 64, 192])
@pytest.mark.parametrize("turned", [False, True])
def test_a_dropped_product_of_low_rank_alone(rows_of_tiles, rank, turned):
    tail, b, outs = numbers(rows_of_tiles, rank), numbers(rank, 200).t() if turned else numbers(200, rank), strided(rows_of_tiles, 200)
    ops.dropped_low_rank(tail, b, outs[0], 0.3, 2**31 - 5)
    low_rank_kernels.dropped_low_rank(moved(tail), moved(b), outs[1], 0.3, 2**31 - 5)
    near(outs[1], outs[0], 1e-2)
    assert 0.2 < (outs[1] == 0).float().mean() < 0.4


@pytest.mark.parametrize("columns", [1000, 9001])
def test_cross_entropy(columns):
    logits, targets = numbers(ROWS, columns) * 3, torch.randint(columns, (ROWS,))
    theirs, losses = moved(logits), [torch.empty(ROWS), torch.empty(ROWS, device=DEVICE)]
    ops.cross_entropy(logits, targets, losses[0])
    product_kernels.cross_entropy(theirs, moved(targets), losses[1])
    near(losses[1], losses[0], 1e-5)
    near(theirs, logits)


@pytest.mark.parametrize("columns", [COLUMNS, 2049])
def test_dropout_draws_the_same_mask(columns):
    x, outs = numbers(ROWS, columns), strided(ROWS, columns)
    dropping.dropout(x, 0.3, 2**31 - 5, outs[0])
    dropping_kernels.dropout(moved(x), 0.3, 2**31 - 5, outs[1])
    near(outs[1], outs[0], 1e-3)


@pytest.mark.parametrize(("heads", "parts"), [(2, 1), (5, 3), (40, 2)])
def test_parts_are_added_up_in_strided_rows(heads, parts):
    given, outs = numbers(parts, ROWS, heads, 64), strided(ROWS, heads * 64)
    outs[0].copy_(numbers(ROWS, heads * 64))
    outs[1].copy_(outs[0])
    ops.add_up([given], [outs[0].unflatten(1, (heads, 64))])
    kernels.add_up(moved(given), outs[1].unflatten(1, (heads, 64)))
    near(outs[1], outs[0])


def test_rows_are_scaled_and_scattered():
    x, places, scale = numbers(ROWS, COLUMNS), torch.randperm(2 * ROWS)[:ROWS], torch.tensor([0.37])
    outs = [torch.zeros(2 * ROWS, COLUMNS, dtype=x.dtype, device=device) for device in ("cpu", DEVICE)]
    ops.scatter(x, places, scale, outs[0])
    kernels.scatter(moved(x), moved(places), moved(scale), outs[1])
    assert torch.equal(outs[1].cpu(), outs[0])
    kernels.scatter(moved(x[:0]), moved(places[:0]), moved(scale), outs[1])
    assert torch.equal(outs[1].cpu(), outs[0])


def test_rows_in_8_bit():
    x = strided(ROWS, COLUMNS)
    x[0].copy_(numbers(ROWS, COLUMNS))
    x[1].copy_(x[0])
    (_, found), wanted = eights(ROWS, COLUMNS, True), ops.quantise_rows(x[0])
    kernels.quantise_rows(x[1], *found)
    near_eight(found, wanted)


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


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
def test_they_compile_for_gpus_that_are_not_there(capability, tmp_path):
    words = [sys.executable, str(Path(__file__).with_name("compiled.py")), str(capability)]
    variables = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(words, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 25
