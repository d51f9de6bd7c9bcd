"""From prepared rows to the tensors of a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_from_disk

from tunestation.training.loss import IGNORE


class Visits(torch.utils.data.Dataset):
    """The rows of `data` in the order in which they are visited."""

    def __init__(self, data: Dataset, visits: tuple[int, ...]):
        self.data = data
        self.visits = visits

    def __len__(self) -> int:
        return len(self.visits)

    def __getitem__(self, index: int) -> dict:
        return self.data[self.visits[index]]


def load_rows(folder: Path) -> Dataset:
    """Rows {input_ids, labels, position_ids} as `prepare` wrote them."""
    return load_from_disk(str(folder))


class Collate:
    """Rows of unequal length -> int64 tensors [batch, longest]; padding is a document of its own without labels."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        gaps = [longest - len(row["input_ids"]) for row in rows]
        return {
            "input_ids": torch.tensor([[*row["input_ids"], *[self.pad_token_id] * gap] for row, gap in zip(rows, gaps, strict=True)]),
            "labels": torch.tensor([[*row["labels"], *[IGNORE] * gap] for row, gap in zip(rows, gaps, strict=True)]),
            "position_ids": torch.tensor([[*row["position_ids"], *range(gap)] for row, gap in zip(rows, gaps, strict=True)]),
        }


def lay(rows: list[dict]) -> dict[str, torch.Tensor | int | np.ndarray]:
    """Rows one behind the other, without padding, for the fast step. T tokens, d documents, n labelled tokens:

    input_ids, labels, position_ids int64 [1, T]; cu_seqlens int32 [d + 1], cumulative lengths; longest, the tokens of the longest
    document; labelled int64 [n], places whose next token is learned, and targets [n], these tokens; host_ids, input_ids once more, as an
    array, which stays on the host when tensors go to a GPU. Having all that here keeps the GPU from being waited for.
    """
    input_ids, labels, position_ids = (
        torch.tensor([value for row in rows for value in row[name]]) for name in ("input_ids", "labels", "position_ids")
    )
    starts = (position_ids == 0).nonzero()[:, 0]
    labels[starts] = IGNORE  # nothing precedes the first token of a document
    cu_seqlens = torch.cat([starts, torch.tensor([len(input_ids)])]).int()
    learned = (labels != IGNORE).nonzero()[:, 0]
    return {
        "input_ids": input_ids[None],
        "labels": labels[None],
        "position_ids": position_ids[None],
        "cu_seqlens": cu_seqlens,
        "longest": int(cu_seqlens.diff().max()),
        "labelled": learned - 1,
        "targets": labels[learned],
        "host_ids": input_ids[None].numpy(),
    }


def placed(batch: dict, device: torch.device) -> dict:
    """`batch` on `device`; ends of documents are spread out as attention takes them (`packed.documents`), here at last: memory can only be
    pinned for values that each have a place of their own."""
    there = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
    if "ends" in there:
        there["attention_mask"] = there.pop("ends").expand(1, 1, there.pop("longest"), -1)
    return there
