"""Compile every Triton kernel of the fast step for a GPU that is not there: `python compiled.py 90`, for compute capability 9.0.

A driver that only says what GPU it has takes the place of the real one, and a launch ends when its kernel is compiled.
"""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that a program may have, as the CUDA programming guide lists them."""


class Driver:
    """What Triton asks of a driver before a launch."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def launches(capability: int) -> None:
    """Each kernel as layers launch it: with and without residuals and dropout, either activation, 8-bit copies where a GPU has them."""
    from tunestation.training.fast import low_rank_kernels

    low_rank_kernels.ample = lambda _device: capability in (90, 100)
    h = torch.empty(4, 320).bfloat16()
    of_rows(h, capability >= 89)
    of_heads(capability >= 89)
    beside_products()
    of_weights()


def of_rows(h: torch.Tensor, has_eight: bool) -> None:
    """Norms, activations, copies."""
    from tunestation.training.fast import dropping_kernels, kernels, ops
    from tunestation.training.fast.dropping import Dropped

    wide, weight = torch.empty(4, 640).bfloat16(), torch.empty(320).bfloat16()
    eights = [ops.empty_eight(4, 320, h.device)] if has_eight else []
    drawn = Dropped(h, 0.1, 5)
    for eight in (None, *eights):
        kernels.rms_norm(h, weight, 1e-6, h, eight, drawn)
        kernels.rms_norm(h, weight, 1e-6, h, eight)
        for gelu in (False, True):
            kernels.glu(wide, h, gelu, eight, None if gelu else drawn)
            kernels.glu_backward(wide, h, wide, gelu, eight, result=gelu)
        kernels.rms_norm_backward(h, h, weight, 1e-6, h, h, eight, result=eight is None)
        kernels.copy(h, h, eight, drawn)
    for other in (None, h):
        kernels.rms_norm_backward(h, h, weight, 1e-6, h, other)
    for eight in eights:
        kernels.quantise_rows(h, *eight)
    dropping_kernels.dropout(h, 0.1, 5, h)
    kernels.add_up(h.view(1, *h.shape[:1], -1, 64), h.view(h.shape[0], -1, 64))
    kernels.scatter(h, torch.zeros(4, dtype=torch.int64), weight.float(), h)


def of_heads(has_eight: bool) -> None:
    """Rotation, with norms and without, and back."""
    from tunestation.training.fast import ops, rotary_kernels

    heads, weight, table = torch.empty(4, 20, 64).bfloat16(), torch.empty(320).bfloat16(), torch.empty(4, 32)
    rotary_kernels.rotate(heads, table, table, heads, 1)
    rotary_kernels.norm_rotate(heads, weight, 1e-6, table, table, heads)
    rotary_kernels.norm_rotate_backward(heads, heads, weight, 1e-6, table, table, heads)
    beside = torch.empty(4, 28 * 64).bfloat16()
    for eight in (None, ops.empty_eight(*beside.shape, beside.device)) if has_eight else (None,):
        rotary_kernels.turn_back((heads, heads[:, :4], heads[:, :4]), table, table, beside, eight)
    for ranks in ([64] * 3, [8, 16, 4]):
        rows, table = torch.empty(64, 20 * 128 + sum(ranks)).bfloat16(), torch.empty(64, 64)
        if rotary_kernels.fits(128, ranks, table):
            for rest in ([], *([torch.empty(parts, 64, 2, 128).bfloat16()] * 2 for parts in (1, 3))):
                rotary_kernels.turn_back_in_place(rows, 2560, [16, 2, 2], ranks, rows, table, table, rest)


def beside_products() -> None:
    """What adapters add, and the loss."""
    from tunestation.training.fast import low_rank_kernels, product_kernels

    tall, tails = torch.empty(8192, 320).bfloat16(), torch.empty(8192, 200).bfloat16()
    for rank, turned in ((64, False), (16, True), (128, False), (192, True), (200, False)):
        b = torch.empty(rank, 320).bfloat16().t() if turned else torch.empty(320, rank).bfloat16()
        for added, p in ((None, 0.0), (None, 0.5), (tall, 0.0), (tall, 0.1)):
            low_rank_kernels.add_low_rank(tall, tails[:, :rank], b, added, p, 5)
        low_rank_kernels.dropped_low_rank(tails[:, :rank], b, tall, 0.1, 5)
    product_kernels.cross_entropy(torch.empty(4, 640).bfloat16(), torch.zeros(4, dtype=torch.int64), torch.empty(4))


def of_weights() -> None:
    """4-bit weights, and whole buffers."""
    from tunestation.training.fast import product_kernels
    from tunestation.training.fast.weights import Buffer

    codes, scales = torch.zeros(4096, dtype=torch.uint8), torch.zeros(256)
    for nested in (None, (scales, scales, scales)):
        for columns in (64, 80):
            out = torch.empty(8192 // columns, columns).bfloat16()
            product_kernels.dequantise_nf4(codes, scales, codes if nested else scales, nested, out)
    addresses = torch.zeros(24, dtype=torch.int64)
    for nested in (False, True):
        for columns in (512, 688):
            buffer = Buffer(torch.empty(264 * (columns + 8)).bfloat16(), 256, columns, 8, True)
            product_kernels.fill(addresses, buffer, [256], [8], [0.5], nested, wide=nested, paired=False)
            product_kernels.fill(addresses, buffer, [128, 128], [4, 4], [0.5, 0.5], nested, wide=nested, paired=True)
        for paired, sizes in ((False, [128, 64, 64]), (True, [128, 128])):
            members = sizes, [4, 0, 4][: len(sizes)], [0.5, 0.0, 0.5][: len(sizes)]
            product_kernels.fill_adapters(addresses[None], addresses, buffer, *members, wide=paired, paired=paired)


def main(capability: int) -> None:
    """Prints how many kernels were compiled to machine code."""
    made = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: object, grid: object, warmup: bool, **options: object) -> object:
        made.append(run(self, *args, grid=grid, warmup=True, **options))
        return made[-1]

    triton.runtime.driver.set_active(Driver(capability))
    JITFunction.run = compile_only
    launches(capability)
    assert all(kernel.asm["cubin"] for kernel in made)
    assert max(kernel.metadata.shared for kernel in made) <= 1024 * SHARED[capability]
    print(len(made))


if __name__ == "__main__":
    main(int(sys.argv[1]))
