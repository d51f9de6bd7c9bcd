"""Queries and keys turned inside of their product by QuACK on a Hopper GPU, and by a pass after it: `python bench/rope.py --out FILE`.

Heads have their halves in turn there, column by column, which attention does not see, as long as queries and keys have it alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from cutlass import Float32
from measuring import failure, limits, median_seconds, tell
from quack.epilogue import gemm_epilogue, pack, unpack
from quack.epilogue.rotary import rotary_cos_sin_load
from quack.gemm_config import GemmConfig

from tunestation.training.fast import ops, products

TOKENS, SIZE = 16384, 128
SHAPES = {"internlm2-7b": (4096, 192, (32, 8, 8)), "internlm2-1.8b": (2048, 192, (16, 8, 8))}
"""Hidden size, ranks, heads of queries, keys and values."""
TILES = ((192, 128, True, 1, 2), (192, 128, True, 2, 1), (128, 128, True, 1, 2), (128, 128, True, 2, 1), (256, 128, False, 1, 2))
"""Rows and columns of a tile, whether two take turns, and the cluster."""
SETTLE = 80
"""Products before a search for the fastest algorithm has ended."""


@gemm_epilogue(ops={"table": rotary_cos_sin_load("table")}, mode="acc_pair")
def turned(acc, table, turns):
    """`table` [T, size] has a cosine and a sine in turn; `turns` [1, N] is 1 for queries and keys, 0 for values."""
    first, second = unpack(acc)
    cos, sin = unpack(table)
    on, _ = unpack(turns)
    cos, sin = Float32(1.0) + on * (cos - Float32(1.0)), sin * on
    return {"D": pack(first * cos - second * sin, first * sin + second * cos)}


def ways(shape: tuple[int, int, tuple[int, ...]]) -> dict[str, Callable]:
    """Each way as a function of nothing, over random numbers."""
    hidden, ranks, heads = shape
    outputs, both = SIZE * sum(heads), SIZE * sum(heads[:2])
    x, weight = (torch.randn(rows, hidden + ranks, device="cuda").bfloat16() for rows in (TOKENS, outputs))
    angles, out = torch.rand(TOKENS, SIZE // 2, device="cuda"), torch.empty(TOKENS, outputs, device="cuda", dtype=torch.bfloat16)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    table = torch.stack([cos, sin], 2).flatten(1)
    turns = (torch.arange(outputs, device="cuda") < both).float()[None]
    part = out[:, :both].unflatten(1, (-1, SIZE))

    def apart() -> None:
        products.product(x, weight.t(), out)
        ops.rotate(part, cos, sin, part, sign=1)

    def inside(tile: tuple) -> Callable:
        names = ("tile_m", "tile_n", "pingpong", "cluster_m", "cluster_n")
        config = GemmConfig(**dict(zip(names, tile, strict=True)), is_dynamic_persistent=False)
        return lambda: turned(x, weight.t(), table=table, turns=turns, out={"D": out}, config=config)

    return {"product": lambda: products.product(x, weight.t(), out), "product, pass": apart} | {str(tile): inside(tile) for tile in TILES}


def main(out: Path) -> None:
    """Print a row for each shape and way, those to compare with first and last."""
    rates = limits()
    for name, shape in SHAPES.items():
        known = ways(shape)
        for _ in range(SETTLE):
            known["product"]()
        for way in (*known, "product, pass", "product"):
            row = {"case": f"rope-{name}", "way": way}
            try:
                row["us"] = round(1e6 * median_seconds(known[way]))
            except Exception as error:  # whatever a tile does not like, the others' rows are wanted
                row["failed"] = failure(error)
            tell(row, out, rates)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("rope.json"))
    main(parser.parse_args().out)
