"""Tiles of the products that have the activation inside of them, on a Hopper GPU with QuACK: `python bench/gated.py --out FILE`.

For a 7B and a 1.8B shape, 16,384 tokens, forward and backward: the microseconds of each tile that QuACK knows for such products. Compiling
takes longest, so several processes do it at a time; the GPU is one's alone while it measures, and all begin and end with the tile in use,
for a GPU that is warmer is slower.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.synchronize import Lock
from pathlib import Path
from statistics import mean

import torch
from measuring import failure, limits, median_seconds, save

TOKENS = 16384
SHAPES = {"internlm2-7b": (4096, 128, 14336, 64), "internlm2-1.8b": (2048, 128, 8192, 64)}
"""Hidden size, ranks of gate and up, intermediate size, rank of down."""
WAYS = ("forward", "backward", "backward, dropout")


def tiles(swizzles: list[int]) -> list:
    """Of QuACK for pairs of columns, in each of the orders `swizzles` in which they are done."""
    from quack.gemm_config import get_all_configs

    known = [config for config in get_all_configs("gated") if config.device_capacity == 9]
    return [replace(config, max_swizzle_size=swizzle) for config in known for swizzle in swizzles]


def products(shape: tuple[int, int, int, int]) -> dict[str, Callable]:
    """Each way as a function of nothing, over random numbers with room behind rows as a step has them."""
    from tunestation.training.fast import gated_kernels

    hidden, ranks, inner, rank = shape
    x, grads = (torch.randn(TOKENS, hidden + more, device="cuda").bfloat16() for more in (ranks, rank))
    wide = torch.randn(2 * inner, hidden + ranks, device="cuda").bfloat16().t()
    narrow = torch.randn(hidden + rank, inner, device="cuda").bfloat16()
    gate_up, out, added = (torch.randn(TOKENS, columns, device="cuda").bfloat16() for columns in (2 * inner, inner, inner))
    into = torch.empty_like(gate_up)
    return {
        WAYS[0]: lambda: gated_kernels.product(x, wide, gate_up, out),
        WAYS[1]: lambda: gated_kernels.backward(grads, narrow, gate_up, into),
        WAYS[2]: lambda: gated_kernels.backward(grads[:, :hidden], narrow[:hidden], gate_up, into, added=added),
    }


def measure(config: object, ways: list[str], lock: Lock, out: Path) -> None:
    """The rows of one tile, in a process of its own: one that QuACK cannot make is in the table with the reason."""
    from tunestation.training.fast import gated_kernels

    used = gated_kernels.CONFIG
    tile = {name: getattr(config, name) for name in ("tile_m", "tile_n", "pingpong", "cluster_m", "cluster_n", "max_swizzle_size")}
    for name, shape in SHAPES.items():
        for way, run in products(shape).items():
            if way not in ways:
                continue
            row = {"case": f"gated-{name}", "way": way, **tile}
            try:
                for each in (config, used):
                    gated_kernels.CONFIG = each
                    run()  # compiled by now
                with lock:
                    row |= turns(run, gated_kernels, (used, config, used))
            except Exception as error:  # whatever a tile does not like, the others' rows are wanted
                row["failed"] = failure(error)
            with lock:
                print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                save([row], out)


def turns(run: Callable, kernels: object, configs: tuple) -> dict:
    """Microseconds of a tile between two measurements of the one in use."""
    found = []
    for config in configs:
        kernels.CONFIG = config
        found.append(1e6 * median_seconds(run))
    return {"us": round(found[1]), "in_use_us": round(mean((found[0], found[2])))}


def main(ways: list[str], swizzles: list[int], workers: int, out: Path) -> None:
    """Measure every tile."""
    save([], out, limits())
    context = get_context("spawn")
    lock = context.Lock()
    waiting = [context.Process(target=measure, args=(config, ways, lock, out)) for config in tiles(swizzles)]
    for first in range(0, len(waiting), workers):
        several = waiting[first : first + workers]
        for process in several:
            process.start()
        for process in several:
            process.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ways", type=lambda text: text.split(";"), default=list(WAYS), help=";".join(WAYS))
    parser.add_argument("--swizzles", type=lambda text: [int(size) for size in text.split(",")], default=[8])
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("gated.json"))
    given = parser.parse_args()
    main(given.ways, given.swizzles, given.workers, given.out)
