"""The loss: negative log-likelihood of the labelled tokens, averaged over all of them in a global batch."""

import torch
from torch.nn import functional

IGNORE = -100


def summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over labelled positions. logits [batch, length, vocab] any float; labels [batch, length] int64; returns fp32 scalar.

    Only labelled rows are turned to fp32: with prompts masked that is often less than half of them.
    """
    targets = labels[:, 1:].reshape(-1)
    labelled = targets != IGNORE
    rows = logits[:, :-1].reshape(-1, logits.shape[-1])[labelled]
    return functional.cross_entropy(rows.float(), targets[labelled], reduction="sum")


def of_outputs(outputs: object, labels: torch.Tensor) -> torch.Tensor:
    """Sum over labelled tokens: the fast step has it already, transformers' own step gives logits."""
    return summed_loss(outputs.logits, labels) if outputs.loss is None else outputs.loss


def mean_over_batch(outputs: object, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int) -> torch.Tensor:
    """Trainer's `compute_loss_func`: divides by the labelled tokens of all micro-batches and ranks, never of one of them."""
    return of_outputs(outputs, labels) / num_items_in_batch
