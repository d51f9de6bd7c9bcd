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
from tunestation.training import memory
from tunestation.training.advice import does_not_fit
from tunestation.training.batches import placed
from tunestation.training.fast.model import Fast
from tunestation.training.learned import Learned
from tunestation.training.loss import of_outputs
from tunestation.training.model import trainable
from tunestation.training.setup import Setup

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
    folder: Path
    """Where checkpoints go."""
    checkpoints: int
    """How many there are at most at once."""
    states: int
    """Bytes of Adam's states on this GPU, which the first step will make."""
    gradients: Learned
    """What weights that learn take beside themselves."""
    setup: Setup | None
    """What is planned with; None where the fast step does not know the model either."""
    save: Callable[[str], None]
    """Saves what a checkpoint holds of the model, all processes together."""
    share: Callable[[], None]
    """Under ZeRO-3: gives back the weights that were brought together."""
    advice: Callable[[], str]
    """What to do if it does not fit."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self.check_disk()
        if self.fast:
            self.fast.look_up()
            free = self.free() - (0 if state.global_step else self.states)  # one that goes on has loaded them
            setup, shape = self.setup, self.fast.shape
            rest = (setup.checkpointing, setup.base, self.gradients, setup.double_quant, self.fast.choice.host)
            choice = memory.choose(shape, self.tokens, free, *rest)
            self.fast.keep(choice)
            print(f"  kept in memory: {choice.told}", flush=True)
        with advised(self.tokens, self.advice):
            self.run(args.device, 0 if state.global_step else self.states)
        self.share()
        self.try_saving(state.is_world_process_zero)

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
        needed = CHECKPOINT_BYTES * self.checkpoints * trainable(self.model)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            what = f"{self.checkpoints} checkpoints need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in the runs folder."
            raise TunestationError(what, remedy="Free some space, or lower train.keep.")

    def run(self, device: torch.device, states: int) -> None:
        """One forward and backward pass of the longest micro-batch, what the optimizer's step takes, and one evaluation.

        `states` bytes are held meanwhile.
        """
        mode, held = self.model.training, torch.empty(states, dtype=torch.uint8, device=device)
        with torch.random.fork_rng():
            self._backward(self._loss(self.longest, device))
            torch.empty(round(self.gradients.step * trainable(self.model)), dtype=torch.uint8, device=device)
            if self.held_out:
                with torch.no_grad():
                    self._loss([self.held_out], device)
        del held
        self.model.train(mode)

    def _backward(self, loss: torch.Tensor) -> None:
        """Gradients are not kept, but as many bytes as DeepSpeed will take for them on this GPU: it hands most of them to others."""
        found, count = self.gradients, trainable(self.model)
        kept = [torch.empty(round(found.held * count), dtype=torch.uint8, device=loss.device)]

        def taken(gradient: torch.Tensor) -> torch.Tensor:
            first = round((found.early - found.held) * count) if len(kept) == 1 else 0
            size = round((found.backward - found.early) * gradient.numel())
            kept.append(torch.empty(first + size, dtype=torch.uint8, device=gradient.device))
            return gradient.new_zeros(()).expand_as(gradient)

        hooks = [weight.register_hook(taken) for weight in self.weights]
        try:
            torch.autograd.grad(loss, self.weights, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()

    def try_saving(self, writes: bool) -> None:
        """Save once as checkpoints will be; this process `writes`, or only takes part."""
        tried = self.folder / ".rehearsal"
        self.save(str(tried))
        if writes:
            shutil.rmtree(tried)

    def _loss(self, rows: list[dict], device: torch.device) -> torch.Tensor:
        batch = placed(self.collate(rows), device)
        labels = batch.pop("labels")
        return of_outputs(self.model.train()(**batch, use_cache=False), labels)


@contextmanager
def advised(tokens: int, advice: Callable[[], str]) -> Iterator[None]:
    """Running out of GPU memory in here is told as what it is: micro-batches of `tokens` that do not fit, and what would."""
    try:
        yield
    except torch.OutOfMemoryError:
        total = torch.cuda.mem_get_info()[1] / memory.GIB
        raise TunestationError(does_not_fit(tokens, total), remedy=advice()) from None
