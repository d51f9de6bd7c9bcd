"""The products of `gated` on a Hopper GPU: QuACK's matrix product (Apache-2.0) in CuTe DSL, with its SwiGLU in our epilogues.

Sums are fp32 and in the order of cuBLAS, so that gate and up have its bits. The activation takes them as they are kept, rounded, and so has
the same bits whether it is kept or made again.
"""

from __future__ import annotations

import torch
from cutlass import BFloat16, Float32
from quack.activation import dswiglu
from quack.epilogue import gemm_epilogue, pack, unpack
from quack.gemm_config import GemmConfig

CONFIG = GemmConfig(tile_m=128, tile_n=192, pingpong=True, cluster_m=2, cluster_n=1, is_dynamic_persistent=False)
"""Of twelve the fastest on an H200 with 7B and 1.8B shapes, forward and backward."""


def _rounded(value):
    """fp32, one or a pair, as bfloat16 holds it."""
    if isinstance(value, tuple):
        return type(value)(*(each.to(BFloat16).to(Float32) for each in value))
    return value.to(BFloat16).to(Float32)


@gemm_epilogue(outputs=("activated",), mode="acc_pair")
def _activated(acc):
    gate, up = unpack(acc)
    gate, up = _rounded(gate), _rounded(up)
    activated = dswiglu(gate, up, up)[2]  # by what the backward pass takes, for the same bits
    return {"D": pack(gate, up), "activated": activated}


@gemm_epilogue(mode="packed_cd_b16x2")
def _gradients(acc, c):
    gate, up = unpack(c)
    d_gate, d_up, _ = dswiglu(gate, up, acc)
    return {"D": pack(d_gate, d_up)}


@gemm_epilogue(outputs=("activated",), mode="packed_cd_b16x2")
def _gradients_and_activated(acc, c):
    gate, up = unpack(c)
    d_gate, d_up, activated = dswiglu(gate, up, acc)
    return {"D": pack(d_gate, d_up), "activated": activated}


def product(x, weight, gate_up, out) -> None:
    _activated(x, weight, out={"D": gate_up, "activated": out}, config=CONFIG)


def backward(grads, weight, gate_up, out, result=None) -> None:
    if result is None:
        _gradients(grads, weight, gate_up, out={"D": out}, config=CONFIG)
    else:
        _gradients_and_activated(grads, weight, gate_up, out={"D": out, "activated": result}, config=CONFIG)


def agree(device: torch.device) -> bool:
    """Whether small products on `device` give what the same give on a CPU, to within the rounding of bfloat16."""
    from tunestation.training.fast import gated

    generator = torch.Generator().manual_seed(0)
    x, wide, narrow = (torch.randn(shape, generator=generator).bfloat16() for shape in ((96, 64), (64, 512), (64, 256)))
    found = []
    for where in (torch.device("cpu"), device):
        gate_up, out, result = (torch.empty(96, columns, dtype=torch.bfloat16, device=where) for columns in (512, 256, 256))
        given = x.to(where), wide.to(where)
        gated.product(*given, gate_up, out)
        gradient = torch.empty_like(gate_up)
        gated.backward(given[0], narrow.to(where), gate_up, gradient, result)
        gated.backward(given[0], narrow.to(where), gate_up, gate_up)
        found.append([each.cpu().float() for each in (gate_up, out, gradient, result)])
    return all((mine - wanted).norm() <= 1e-2 * wanted.norm() for wanted, mine in zip(*found, strict=True))
