"""The loss and its gradient in place of logits, by our kernel and by QuACK's where that is installed: `python bench/loss.py --out FILE`.

TB/s count every logit once read and once written, so a kernel that reads them a second time from memory stays at two thirds of a copy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from measuring import CUDA, limits, median_seconds, tell

from tunestation.training.fast import ops

VOCABULARIES = (32000, 92544, 152064)
DEVICE = "cuda" if CUDA else "cpu"
BYTES = 2**29 if CUDA else 2**22
"""Of logits, about as many as a step makes at a time."""


def ours(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """As the fast step does it without QuACK."""
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    if CUDA:
        from tunestation.training.fast import product_kernels

        product_kernels.cross_entropy(logits, targets, losses)
    else:
        ops.cross_entropy(logits, targets, losses)
    return losses


def quack(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """QuACK's kernel, which holds a row in the shared memory of a cluster."""
    from quack.cross_entropy import cross_entropy_fwd

    return cross_entropy_fwd(logits, targets, return_dx=True, inplace_backward=True)[0]


def measure(vocabulary: int, stack: str, kernel: Callable) -> dict:
    """One row; `error` is how far losses and gradients are from torch's in fp32, relative."""
    rows = BYTES // 2 // vocabulary
    logits, targets = torch.randn(rows, vocabulary, device=DEVICE).bfloat16(), torch.randint(vocabulary, (rows,), device=DEVICE)
    exact, found = logits[:64].float().requires_grad_(), logits[:64].clone()
    wanted = torch.nn.functional.cross_entropy(exact, targets[:64], reduction="none")
    gradient = torch.autograd.grad(wanted.sum(), exact)[0]
    losses = kernel(found, targets[:64])
    error = max(((mine - theirs).norm() / theirs.norm()).item() for mine, theirs in ((losses, wanted), (found.float(), gradient)))
    time = median_seconds(lambda: kernel(logits, targets))
    tbps = 2 * logits.nbytes / time / 1e12
    return {"case": f"loss-{vocabulary}", "stack": stack, "rows": rows, "us": round(1e6 * time), "tbps": round(tbps, 2), "error": error}


def main(out: Path) -> None:
    """Print a row for each vocabulary and kernel."""
    rates = limits()
    known = {"tunestation": ours} | ({"quack": quack} if CUDA and find_spec("quack") else {})
    for vocabulary in VOCABULARIES:
        for stack, kernel in known.items():
            row = measure(vocabulary, stack, kernel)
            tell(row, out, rates)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("loss.json"))
    main(parser.parse_args().out)
