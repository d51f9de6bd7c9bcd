"""transformers and peft under Liger's kernels: fused norms, rotation, gated units, and the loss without logits."""

from __future__ import annotations

import torch
from cases import Case
from peer_transformers import measure, settings
from peer_transformers import model as stock

__all__ = ["measure", "model", "settings"]


def model(case: Case) -> torch.nn.Module:
    """The case's model under Liger's kernels."""
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    made = stock(case)
    apply_liger_kernel_to_llama(model=made.get_base_model())
    return made
