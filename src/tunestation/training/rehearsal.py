"""Before the first step: what is kept in memory is decided, and the longest micro-batch, an evaluation and a save are tried.

Running out of memory or disk then happens in the first minute, not in the last hour.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunestation.errors import TunestationError
from tunestation.settings import local_rank
from tunestation.training import memory
from tunestation.training.fast.model import Fast
from tunestation.training.learned import Learned
from tunestation.training.loss import of_outputs

CHECKPOINT_BYTES = 14
"""Of a trainable weight in a checkpoint: itself, and its master copy and Adam's two states in fp32."""


@dataclass
class Rehearsal(TrainerCallback):
    """Runs at the beginning of training, also of one that goes on; leaves no trace in weights, gradients or random numbers."""

    model: torch.nn.Module
    fast: Fast | None
    collate: Callable[[list[dict]], dict]
    longest: list[dict]
    """The rows of the longest micro-batch."""
    held_out: dict | None
    """The longest row that is evaluated."""
    checkpointing: bool | None
    """`runtime.gradient_checkpointing`; None lets memory decide."""
    folder: Path
    """Where checkpoints go."""
    checkpoints: int
    """How many there are at most at once."""
    states: int
    """Bytes of Adam's states on this GPU, which the first step will make."""
    base: str
    """How the frozen weights are held: nf4, fp8 or bf16."""
    gradients: Learned

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self.check_disk()
        if self.fast:
            free = self.free() - (0 if state.global_step else self.states)  # one that goes on has loaded them
            choice = memory.choose(self.fast.shape, self.tokens, free, self.checkpointing, self.base, self.gradients)
            self.fast.keep(choice)
            print(f"  kept in memory: {choice.told}", flush=True)
        with advised(self.tokens):
            self.run(args.device, 0 if state.global_step else self.states)

    @property
    def tokens(self) -> int:
        """Of the longest micro-batch."""
        return sum(len(row["input_ids"]) for row in self.longest)

    @property
    def weights(self) -> list[torch.nn.Parameter]:
        """Those that learn."""
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def free(self) -> int:
        """Bytes that activations and gradients may take, a reserve left aside; on a CPU half of the memory that nobody uses."""
        if not torch.cuda.is_available():
            return psutil.virtual_memory().available // 2
        available, total = torch.cuda.mem_get_info()
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(available + unused - memory.SPARE * total)

    def check_disk(self) -> None:
        """Raises TunestationError if the checkpoints that are to be kept do not fit on the disk."""
        needed = CHECKPOINT_BYTES * self.checkpoints * sum(weight.numel() for weight in self.weights)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            what = f"{self.checkpoints} checkpoints need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in the runs folder."
            raise TunestationError(what, remedy="Free some space, or lower train.keep.")

    def run(self, device: torch.device, states: int) -> None:
        """One forward and backward pass of the longest micro-batch, one evaluation, one save; `states` bytes are held meanwhile."""
        mode, held = self.model.training, torch.empty(states, dtype=torch.uint8, device=device)
        with torch.random.fork_rng():
            loss = self._loss(self.longest, device)
            torch.autograd.grad(loss, self.weights, allow_unused=True)
            del loss
            if self.held_out:
                with torch.no_grad():
                    self._loss([self.held_out], device)
        del held
        self.model.train(mode)
        tried = self.folder / f".rehearsal-{local_rank()}"  # each process of this machine saves and removes its own
        self.model.save_pretrained(tried, safe_serialization=True, save_embedding_layers=False)
        shutil.rmtree(tried)

    def _loss(self, rows: list[dict], device: torch.device) -> torch.Tensor:
        batch = {name: value.to(device) if torch.is_tensor(value) else value for name, value in self.collate(rows).items()}
        labels = batch.pop("labels")
        return of_outputs(self.model.train()(**batch, use_cache=False), labels)


@contextmanager
def advised(tokens: int) -> Iterator[None]:
    """Running out of GPU memory in here is told as what it is: micro-batches of `tokens` that do not fit."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise too_large(tokens) from None


def too_large(tokens: int) -> TunestationError:
    """What to say when a micro-batch of `tokens` does not fit."""
    total = torch.cuda.mem_get_info()[1] / 1e9
    what = f"a micro-batch of {tokens:,} tokens does not fit into this GPU's {total:.0f} GB."
    remedy = "Lower runtime.micro_batch_size, train.max_tokens or train.lora.rank; 'invoke plan' tells by how much."
    return TunestationError(what, remedy=remedy)
