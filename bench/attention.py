"""A layer's attention and its gradient, by torch and by FlashAttention 4 where that is installed: `python bench/attention.py --out FILE`.

Forward is until the next product can read the result, both until the product before can read turned gradients as well, as the fast step
does it: copies and rotation are counted. `host_us` is what the host takes for both.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from cases import drawn
from measuring import CUDA, issued, limits, median_seconds, tell

from tunestation.training.fast import flash, ops
from tunestation.training.fast.attention import ByTorch, Documents, side_by_side
from tunestation.training.fast.flash import Flash

DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
TOKENS, LENGTH, SIZE, ROOM = (16384, 2048, 128, 64) if CUDA else (128, 32, 16, 16)
"""Of a micro-batch, of a sequence, columns of a head, and those that adapters have behind rows."""
HEADS = {"7b": (32, 8), "1.8b": (16, 8), "one for each": (32, 32)}
LENGTHS = ("equal", "packs", "one")


@dataclass
class Rows:
    """What attention reads and writes: q, k, v side by side, and rows with room behind them."""

    heads: tuple[int, int]
    documents: Documents

    def __post_init__(self) -> None:
        (many, few), tokens = self.heads, self.documents.tokens
        self.counts, self.outputs = (many, few, few), (many + 2 * few) * SIZE
        self.qkv, self.d_result = (torch.randn(tokens, columns, device=DEVICE).bfloat16() for columns in (self.outputs, many * SIZE))
        self.out, self.grads = (self.qkv.new_empty(tokens, columns + ROOM) for columns in (many * SIZE, self.outputs))
        self.cos, self.sin = (torch.rand(tokens, SIZE // 2, device=DEVICE).bfloat16() for _ in range(2))

    def parts(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """q, k, v [T, heads, size] of rows [T, N]."""
        return side_by_side(rows, self.counts, SIZE)


def attended(way: type, rows: Rows) -> ByTorch | Flash:
    """Forward."""
    place = rows.out[:, :-ROOM]
    made = way(*rows.parts(rows.qkv), rows.documents, SIZE**-0.5, place)
    if made.result.data_ptr() != place.data_ptr():
        ops.copy(made.result.flatten(1), place)
    return made


def forward_and_back(way: type, rows: Rows) -> None:
    """Both."""
    made, out = attended(way, rows), rows.grads[:, : rows.outputs]
    found, rest = made.gradients(rows.d_result.view(made.result.shape), rows.parts(out))
    ops.add_up(rest, found[1:])
    ops.turn_back(found, rows.cos, rows.sin, out)


def lengths(kind: str) -> list[int]:
    """Of documents: of one length, of 60 to 600 tokens, or a single one."""
    return drawn(random.Random(0), TOKENS, 600) if kind == "packs" else [LENGTH] * (1 if kind == "one" else TOKENS // LENGTH)


def measure(name: str, kind: str, in_order: bool, stack: str, way: type) -> dict:
    """One row."""
    found = lengths(kind)
    cu = torch.tensor([0, *found], device=DEVICE).cumsum(0).int()
    rows = Rows(HEADS[name], Documents(cu, max(found), sum(found), in_order))
    forward, both = median_seconds(lambda: attended(way, rows)), median_seconds(lambda: forward_and_back(way, rows))
    times = {"forward_us": forward, "both_us": both, "host_us": issued(lambda: forward_and_back(way, rows))}
    case = f"attention-{name}-{kind}{'-order' * in_order}"
    return {"case": case, "stack": stack} | {key: round(1e6 * seconds) for key, seconds in times.items()}


def main(out: Path) -> None:
    """Print a row for each shape, kind of documents and stack."""
    rates = limits()
    for name, heads in HEADS.items():
        known = {"torch": ByTorch} | ({"flash-attn-4": Flash} if flash.known(DEVICE, torch.bfloat16, heads, SIZE) else {})
        for kind in LENGTHS:
            for in_order in (False, True):
                for stack, way in known.items():
                    tell(measure(name, kind, in_order, stack, way), out, rates)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("attention.json"))
    main(parser.parse_args().out)
