"""The products of `gated` on a Hopper GPU: QuACK's matrix product in CuTe DSL (Apache-2.0), with our activations as its epilogue.

Sums are fp32 and in the order of cuBLAS, so that gate and up have its bits. In the forward pass the activation takes these sums before they
are rounded; in the backward pass it takes gate and up as they were kept.
"""

from __future__ import annotations

from functools import cache

import torch
from quack.activation import dgate_fn_map, gate_fn_map
from quack.epilogue import gemm_epilogue, pack, unpack
from quack.gemm_config import GemmConfig

CONFIG = GemmConfig(tile_m=128, tile_n=192, pingpong=True, cluster_m=2, cluster_n=1, is_dynamic_persistent=False)
"""Of twelve the fastest on an H200 with 7B and 1.8B shapes, forward and backward."""


def _name(gelu: bool) -> str:
    return "geglu" if gelu else "swiglu"


@cache
def _forward(gelu: bool):
    activate = gate_fn_map[_name(gelu)]

    @gemm_epilogue(outputs=("activated",), mode="acc_pair")
    def gated(acc):
        gate, up = unpack(acc)
        return {"D": pack(gate, up), "activated": activate(gate, up)}

    return gated


@cache
def _backward(gelu: bool, again: bool):
    differentiate = dgate_fn_map[_name(gelu)]

    @gemm_epilogue(mode="packed_cd_b16x2")
    def gradients(acc, c):
        gate, up = unpack(c)
        d_gate, d_up, _ = differentiate(gate, up, acc)
        return {"D": pack(d_gate, d_up)}

    @gemm_epilogue(outputs=("activated",), mode="packed_cd_b16x2")
    def gradients_and_result(acc, c):
        gate, up = unpack(c)
        d_gate, d_up, activated = differentiate(gate, up, acc)
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
