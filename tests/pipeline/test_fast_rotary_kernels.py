"""Triton kernels that turn queries and keys, against their definitions in torch: on a GPU, else in Triton's interpreter."""

import pytest
import torch
from test_fast_kernels import (  # noqa: F401  marks of this file too, and what its tests begin with
    DEVICE,
    DTYPE,
    ROWS,
    eights,
    moved,
    near,
    near_eight,
    numbers,
    pytestmark,
    seeded,
    strided,
)

from tunestation.training.fast import ops, rotary_kernels


@pytest.mark.parametrize("sign", [1, -1])
def test_rotary(sign):
    x, cos, sin = numbers(ROWS, 20, 64), numbers(ROWS, 32), numbers(ROWS, 32)
    here, theirs = x.clone(), moved(x)
    ops.rotate(here, cos, sin, here, sign)
    rotary_kernels.rotate(theirs, moved(cos), moved(sin), theirs, sign)
    near(theirs, here)


@pytest.mark.parametrize("eight", [False, True])
@pytest.mark.parametrize(("size", "turning"), [(64, 64), (80, 80), (96, 32)])
def test_gradients_of_heads_turn_back_and_lie_side_by_side(size, turning, eight):
    """Queries have a row for each token, keys and values lie in rows that hold other heads too; where few columns turn, others stay."""
    q, others = numbers(ROWS, 20, size), numbers(ROWS, 8, size)
    grads = q, others[:, :3], others[:, 4:7]
    theirs = moved(others)
    there = moved(q), theirs[:, :3], theirs[:, 4:7]
    cos, sin = numbers(ROWS, turning // 2), numbers(ROWS, turning // 2)
    outs, small = strided(ROWS, 26 * size), eights(ROWS, 26 * size, eight)
    ops.turn_back(grads, cos, sin, outs[0], small[0])
    rotary_kernels.turn_back(there, moved(cos), moved(sin), outs[1], small[1])
    near(outs[1], outs[0])
    near_eight(small[1], small[0])
    assert torch.equal(outs[0][:, 23 * size :], others[:, 4:7].flatten(1))


@pytest.mark.parametrize("size", [64, 80])
def test_norm_and_rotary_of_heads_and_their_gradient(size):
    """Heads lie in rows that hold other heads too."""
    x, grad, weight = numbers(ROWS, 20, size)[:, 3:14], numbers(ROWS, 11, size), numbers(size)
    turning = numbers(ROWS, size // 2), numbers(ROWS, size // 2)
    outs = [torch.full((ROWS, 20, size), float("nan"), dtype=x.dtype, device=device)[:, 3:14] for device in ("cpu", DEVICE)]
    theirs = [moved(part) for part in turning]
    there = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE).copy_(x)
    ops.norm_rotate(x, weight, 1e-6, *turning, outs[0])
    rotary_kernels.norm_rotate(there, moved(weight), 1e-6, *theirs, outs[1])
    near(outs[1], outs[0])
    ops.norm_rotate_backward(grad, x, weight, 1e-6, *turning, outs[0])
    rotary_kernels.norm_rotate_backward(moved(grad), there, moved(weight), 1e-6, *theirs, outs[1])
    near(outs[1], outs[0])


@pytest.mark.parametrize(("heads", "size", "ranks"), [([4, 2, 2], 32, [8, 16, 4]), ([2, 1, 1], 64, [64] * 3), ([4, 2, 2], 128, [64] * 3)])
@pytest.mark.parametrize(("tokens", "parts"), [(150, 0), (150, 1), (150, 3), (2100, 0), (2100, 1)])
def test_heads_turn_back_in_place_with_their_adapters_share(tokens, parts, heads, size, ranks):
    outputs, rank = size * sum(heads), sum(ranks)
    rows = strided(tokens, outputs + rank)
    b = torch.block_diag(*(numbers(size * count, each) for count, each in zip(heads, ranks, strict=True)))
    rows[0][:, :outputs] = numbers(tokens, outputs)
    rows[1].copy_(rows[0])
    angles = torch.randn(tokens, size // 2)
    cos, sin = angles.cos().to(DTYPE), angles.sin().to(DTYPE)
    rest = [numbers(parts, tokens, heads[1], size) for _ in "kv"] if parts else []
    ops.turn_back_in_place(rows[0], heads, ranks, b, cos, sin, rest)
    rotary_kernels.turn_back_in_place(rows[1], outputs, heads, ranks, moved(b), moved(cos), moved(sin), [*map(moved, rest)])
    near(rows[1][:, :outputs], rows[0][:, :outputs])
    near(rows[1][:, outputs:], rows[0][:, outputs:], 1e-2)
