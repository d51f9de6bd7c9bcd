"""Products of an MLP with its activation inside: before the activation's values, or their gradients, leave the GPU's registers.

Gate and up lie in turn here, column by column, so that whoever has one of them has the other. Shapes: T tokens, K columns of what is
multiplied, N gates and as many ups.
"""

from __future__ import annotations

from functools import cache

import torch

from tunestation.training.fast import ops

HOPPER = (9, 0)
"""Compute capability of the GPUs on which these have been measured: on an H200, with the shapes of 7B and 1.8B models, they take 7 % less
time than a product and an activation after it, and 9 to 13 % less in a backward pass."""


@cache
def known(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there are kernels for these products: on a Hopper GPU, by QuACK, if small ones agree with what is written here."""
    if device.type != "cuda" or dtype != torch.bfloat16 or torch.cuda.get_device_capability(device) != HOPPER:
        return False
    try:
        from tunestation.training.fast import gated_kernels
    except ImportError:
        return False
    try:
        agree = all(gated_kernels.agree(device, gelu) for gelu in (False, True))
    except Exception as error:  # a compiler that does not know the driver, say: what it raises is not documented
        print(f"  note: QuACK's products do not run here ({type(error).__name__}); the activation takes a pass of its own", flush=True)
        return False
    if not agree:
        print("  note: QuACK's products give other results here; the activation takes a pass of its own", flush=True)
    return agree


def product(x: torch.Tensor, weight: torch.Tensor, gate_up: torch.Tensor, out: torch.Tensor, gelu: bool) -> None:
    """gate_up [T, 2N] = x [T, K] @ weight [K, 2N], and out [T, N] = act(gate) * up as `ops.glu`; rows of all may be strided."""
    if x.is_cuda:
        return _kernels().product(x, weight, gate_up, out, gelu)
    ops.product(x, weight, gate_up)
    gate, up = gate_up.unflatten(1, (-1, 2)).unbind(2)
    ops.glu(torch.cat([gate, up], 1), out, gelu)


def backward(
    grads: torch.Tensor, weight: torch.Tensor, gate_up: torch.Tensor, out: torch.Tensor, gelu: bool, result: torch.Tensor | None = None
) -> None:
    """out [T, 2N] = gradients of gate and up, and may be `gate_up`; that of act(gate) * up is grads [T, K] @ weight [K, N].

    act(gate) * up itself goes to `result` [T, N], if that is given.
    """
    if grads.is_cuda:
        return _kernels().backward(grads, weight, gate_up, out, gelu, result)
    grad = torch.empty(len(grads), weight.shape[1], dtype=grads.dtype) if result is None else result
    ops.product(grads, weight, grad)
    ops.glu_backward(gate_up, grad, out, gelu, result=result is not None, paired=True)


def _kernels():
    from tunestation.training.fast import gated_kernels

    return gated_kernels
