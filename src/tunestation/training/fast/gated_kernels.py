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

from tunestation.training.fast import hopper

CONFIG = GemmConfig(tile_m=128, tile_n=192, pingpong=True, cluster_m=2, cluster_n=1, is_dynamic_persistent=False)
"""Of twenty the fastest on an H200 with 7B and 1.8B shapes, forward and backward."""


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


def _gradients_of(grad, c):
    """(those of gate and up, what the activation makes of them) from the pair `c` of gate and up."""
    gate, up = unpack(c)
    d_gate, d_up, activated = dswiglu(gate, up, grad)
    return pack(d_gate, d_up), activated


@gemm_epilogue(mode="packed_cd_b16x2")
def _gradients(acc, c):
    return {"D": _gradients_of(acc, c)[0]}


@gemm_epilogue(mode="packed_cd_b16x2")
def _gradients_with(acc, c, added):
    return {"D": _gradients_of(acc + added, c)[0]}


@gemm_epilogue(outputs=("activated",), mode="packed_cd_b16x2")
def _gradients_and_activated(acc, c):
    both, activated = _gradients_of(acc, c)
    return {"D": both, "activated": activated}


@gemm_epilogue(outputs=("activated",), mode="packed_cd_b16x2")
def _gradients_and_activated_with(acc, c, added):
    both, activated = _gradients_of(acc + added, c)
    return {"D": both, "activated": activated}


def product(x, weight, gate_up, out) -> None:
    _activated(x, weight, out={"D": gate_up, "activated": out}, config=CONFIG)


def backward(grads, weight, gate_up, out, result=None, added=None) -> None:
    outs = {"D": out} if result is None else {"D": out, "activated": result}
    if added is None:
        (_gradients if result is None else _gradients_and_activated)(grads, weight, gate_up, out=outs, config=CONFIG)
    else:
        with_added = _gradients_with if result is None else _gradients_and_activated_with
        with_added(grads, weight, gate_up, added=added, out=outs, config=CONFIG)


def agree(device: torch.device) -> bool:
    """Whether small products on `device` give what the same give on a CPU, to within the rounding of bfloat16."""
    generator = torch.Generator().manual_seed(0)
    x, wide, narrow = (torch.randn(shape, generator=generator).bfloat16() for shape in ((96, 64), (64, 512), (64, 256)))
    every = [_every(*(each.to(where) for each in (x, wide, narrow))) for where in (torch.device("cpu"), device)]
    return hopper.near(*every)


def _every(x, wide, narrow) -> list[torch.Tensor]:
    """What each kernel makes of these, gradients also in the place of gate and up."""
    from tunestation.training.fast import gated

    gate_up, out = x.new_empty(len(x), wide.shape[1]), x.new_empty(len(x), narrow.shape[1])
    gated.product(x, wide, gate_up, out)
    found = [gate_up.clone(), out]
    for added in (None, out):
        both, there = torch.empty_like(gate_up), gate_up.clone()
        result = torch.empty_like(out) if added is None else added.clone()
        gated.backward(x, narrow, gate_up, both, result, None if added is None else result)
        gated.backward(x, narrow, there, there, None, added)
        found += [both, result, there]
    return found
