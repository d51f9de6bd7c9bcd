"""GPUs that plans are made for, as their datasheets tell. No torch here.

Rates and bandwidths were compared with at least two of: NVIDIA's datasheets and whitepapers as vendors quote them;
`_inductor/analysis/device_info.py` of torch 2.13 (A100, H100); `fabric/utilities/throughput.py` of lightning 2.6.6 (all but RTX 5090 and
L40S); `gpu_configs` of llm-analysis 0.2.2 (A100, H100, A6000); `get_peak_flops` of torchtitan 0.3.0 (A100, H100, H200, A6000). Where they
count sparsity, half is meant. GeForce cards are half as fast with fp32 sums, which is the rate that counts: a quarter of their rate of
8-bit integers. RTX 3060, 4060 Ti and 4080 are reckoned: multiprocessors (28, 34, 76) times 512 operations a clock times boost clock (1.777,
2.535, 2.505 GHz), which gives the listed rates of the RTX 3090 and 4090 too, and memory clock times bus. Training computes in bfloat16, so
cards older than Ampere (T4, V100) have no rate to list. Memory is the total that torch's out-of-memory messages name in public reports, at
its lowest (that of the RTX 4060 Ti and 4080 is of another Linux card of 16 GB); it was read on the H200.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from tunestation.errors import InputError


@dataclass(frozen=True)
class Card:
    """One kind of GPU."""

    name: str
    memory: float
    """GiB that a process sees, less than is sold as GB: error checking and the driver take their part."""
    rate: float
    """Dense bfloat16 products, TFLOP/s."""
    rate_8: float | None
    """Dense products of 8-bit floats, TFLOP/s; None where they need another card."""
    bandwidth: float
    """Of its memory, GB/s."""
    link: float
    """To and from host memory, GB/s each way: of PCIe 4.0 (5.0) x16's 32 (63) what copies from pinned memory reach."""
    between: float
    """To and from other GPUs of its host, GB/s each way: NVLink of cards that are sold with it, else `link`."""


CARDS = {
    card.name: card
    for card in (
        Card("rtx3060", 11.7, 25.5, None, 360, 25, 25),
        Card("rtx4060-ti", 15.6, 44, 88, 288, 12.5, 12.5),  # eight lanes of PCIe, and the one that is sold with 16 GB
        Card("rtx4080", 15.6, 97.5, 195, 717, 25, 25),
        Card("rtx3090", 23.6, 71, None, 936, 25, 25),
        Card("rtx4090", 23.5, 165, 330, 1008, 25, 25),
        Card("l4", 22.0, 121, 242, 300, 25, 25),  # at 72 W it may hold its rates for moments only
        Card("rtx5090", 31.4, 210, 419, 1792, 50, 50),
        Card("a100-40", 39.4, 312, None, 1555, 25, 300),
        Card("a40", 44.4, 150, None, 696, 25, 25),
        Card("a6000", 47.4, 155, None, 768, 25, 25),
        Card("l40s", 44.4, 362, 733, 864, 25, 25),
        Card("a100-80", 79.1, 312, None, 2039, 25, 300),
        Card("h100-pcie", 79.1, 756, 1513, 2000, 50, 50),
        Card("h100", 79.1, 989, 1979, 3350, 50, 450),
        Card("h200", 139.8, 989, 1979, 4800, 50, 450),
    )
}


def chosen(text: str) -> Card:
    """The card that somebody calls `text`: a name of `CARDS`, or the product's with or without its maker. Raises InputError for others."""
    name = re.sub(r"nvidia|geforce|\s", "", text.lower())
    if name in CARDS:
        return CARDS[name]
    near = get_close_matches(name, list(CARDS), 1)
    remedy = f"Did you mean '{near[0]}'? " if near else ""
    raise InputError(f"'{text}' is no card with known rates.", "--gpu", f"{remedy}Choose from: {', '.join(CARDS)}.")


def named(device: str, gib: float) -> Card | None:
    """The card that calls itself `device` (as `NVIDIA A100-SXM4-80GB`) and has `gib` of memory; None if its rates are not known."""
    words = re.findall(r"[a-z0-9]+", device.lower().replace("rtx a", "a").replace("rtx ", "rtx"))
    if "laptop" in words:
        return None
    same = [card for name, card in CARDS.items() if name.partition("-")[0] in words and abs(card.memory - gib) < 0.1 * gib]
    return max(same, key=lambda card: (len(set(card.name.split("-")) & set(words)), -len(card.name)), default=None)
