"""The products of `gated` on a Hopper GPU: QuACK's matrix product in CuTe DSL (Apache-2.0), with our activations as its epilogue.

Sums are fp32 and in the order of cuBLAS, so that gate and up have its bits. The activation takes them as they are kept, rounded, and so has
the same bits whether it is kept or made again.
"""

from __future__ import annotations

from functools import cache

import torch
from cutlass import BFloat16, Float32
from quack.activation import dgate_fn_map
from quack.epilogue import gemm_epilogue, pack, unpack
from quack.gemm_config import GemmConfig

CONFIG = GemmConfig(tile_m=128, tile_n=192, pingpong=True, cluster_m=2, cluster_n=1, is_dynamic_persistent=False)
"""Of twelve the fastest on an H200 with 7B and 1.8B shapes, forward and backward."""


def _derivative(gelu: bool):
    """(gate, up, gradient of act(gate) * up) -> (gradient of gate, of up, act(gate) * up)."""
    return dgate_fn_map["geglu" if gelu else "swiglu"]


def _rounded(value):
    """fp32, one or a pair, as bfloat16 holds it."""
    if isinstance(value, tuple):
        return type(value)(*(each.to(BFloat16).to(Float32) for each in value))
    return value.to(BFloat16).to(Float32)


@cache
def _forward(gelu: bool):
    derivative = _derivative(gelu)  # of which the result alone is taken: it has the bits that the backward pass would give it

    @gemm_epilogue(outputs=("activated",), mode="acc_pair")
    def gated(acc):
        gate, up = unpack(acc)
        gate, up = _rounded(gate), _rounded(up)
        activated = derivative(gate, up, up)[2]
        return {"D": pack(gate, up), "activated": activated}

    return gated


@cache
def _backward(gelu: bool, again: bool):
    derivative = _derivative(gelu)

    @gemm_epilogue(mode="packed_cd_b16x2")
    def gradients(acc, c):
        gate, up = unpack(c)
        d_gate, d_up, _ = derivative(gate, up, acc)
        return {"D": pack(d_gate, d_up)}

    @gemm_epilogue(outputs=("activated",), mode="packed_cd_b16x2")
    def gradients_and_result(acc, c):
        gate, up = unpack(c)
        d_gate, d_up, activated = derivative(gate, up, acc)
        return {"D": pack(d_gate, d_up), "activated": activated}

    return gradients_and_result if again else gradients


def product(x, weight, gate_up, out, gelu) -> None:
    _forward(gelu)(x, weight, out={"D": gate_up, "activated": out}, config=CONFIG)


def backward(grads, weight, gate_up, out, gelu, result=None) -> None:
    outs = {"D": out} if result is None else {"D": out, "activated": result}
    _backward(gelu, result is not None)(grads, weight, gate_up, out=outs, config=CONFIG)


def agree(device: torch.device, gelu: bool) -> bool:
    """Whether small products on `device` give what the same give on a CPU, to within the rounding of bfloat16."""
    from tunestation.training.fast import gated

    generator = torch.Generator().manual_seed(0)
    x, wide, narrow = (torch.randn(shape, generator=generator).bfloat16() for shape in ((96, 64), (64, 512), (64, 256)))
    found = []
    for where in (torch.device("cpu"), device):
        gate_up, out, result = (torch.empty(96, columns, dtype=torch.bfloat16, device=where) for columns in (512, 256, 256))
        given = x.to(where), wide.to(where)
        gated.product(*given, gate_up, out, gelu)
        gradient = torch.empty_like(gate_up)
        gated.backward(given[0], narrow.to(where), gate_up, gradient, gelu, result)
        gated.backward(given[0], narrow.to(where), gate_up, gate_up, gelu)
        found.append([each.cpu().float() for each in (gate_up, out, gradient, result)])
    return all((mine - wanted).norm() <= 1e-2 * wanted.norm() for wanted, mine in zip(*found, strict=True))
