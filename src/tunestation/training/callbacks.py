"""What happens beside the steps: sample answers, stopping on request, the line of progress."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunestation.errors import TunestationError
from tunestation.pipeline.files import read_json, write_json
from tunestation.report import Progress, duration
from tunestation.training.clipping import without_waiting


class Samples(TrainerCallback):
    """Answers to the recipe's prompts before, during and after training, kept in a file so that a resumed run has all."""

    def __init__(self, answer: Callable[[], list[str]], every_steps: int, file: Path):
        self.answer = answer
        self.every_steps = every_steps
        self.file = file

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if state.global_step == 0:
            self._take(state, {})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if state.global_step % self.every_steps == 0 or state.global_step == state.max_steps:
            self._take(state, self.taken())

    def _take(self, state: TrainerState, before: dict[str, list[str]]) -> None:
        """Answers of now, beside those of `before`. The first process alone writes, and none deletes: they do not wait for each other."""
        answers = self.answer()
        if state.is_world_process_zero:
            write_json(self.file, before | {str(state.global_step): answers})

    def taken(self) -> dict[str, list[str]]:
        """Step -> one answer a prompt."""
        return read_json(self.file) if self.file.exists() else {}


class StopOnRequest(TrainerCallback):
    """Ends training after the current step, with a checkpoint, when a signal or the stop file asks for it."""

    def __init__(self, stop_file: Path):
        self.stop_file = stop_file
        self.asked = False
        self.stopped = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: object) -> None:
        self.asked = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if state.global_step < state.max_steps and self._everybody_knows(args):
            self.stopped = control.should_save = control.should_training_stop = True

    def _everybody_knows(self, args: TrainingArguments) -> bool:
        """All ranks must stop at the same step: one that was asked tells the others."""
        asked = self.asked or self.stop_file.exists()
        if args.world_size == 1:
            return asked
        flag = torch.tensor([int(asked)], device=args.device)
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        return bool(flag.item())


class FreshOptimizer(TrainerCallback):
    """Without ZeRO, DeepSpeed makes Adam's states by a step of its own: forgotten, lest the first updates be a quarter too small."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: object, **_: object) -> None:
        if state.global_step == 0:
            optimizer.state.clear()


class ClipsWithoutWaiting(TrainerCallback):
    """ZeRO 1 and 2 clip gradients while the host goes on."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: object, **_: object) -> None:
        without_waiting(optimizer.optimizer)


class Watch(TrainerCallback):
    """Shows progress and refuses to go on with a loss that is no number."""

    def __init__(self, tokens_by_step: list[int], steps: int):
        self.tokens = tokens_by_step
        self.progress = Progress(steps)
        self.started = time.monotonic()
        self.first_step = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self.started, self.first_step = time.monotonic(), state.global_step
        self.progress.begin(state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict, **_: object) -> None:
        if "eval_loss" in logs:
            self.progress.note(f"step {state.global_step}: held-out loss {logs['eval_loss']:.4f}")
        if "loss" not in logs:
            return
        if not logs["loss"] < float("inf"):
            raise TunestationError(f"the loss is {logs['loss']} at step {state.global_step}.", remedy="Lower train.learning_rate.")
        self.progress.show(state.global_step, f"loss {logs['loss']:.4f}  {self.speed(state.global_step):,.0f} tok/s  {memory_gb():.2f} GB")

    def speed(self, step: int) -> float:
        """Tokens a second since this process began training."""
        return sum(self.tokens[self.first_step : step]) / max(time.monotonic() - self.started, 1e-9)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self.progress.close(f"{state.global_step} steps in {duration(time.monotonic() - self.started)}")


def memory_gb() -> float:
    """Highest memory of this process so far: GPU memory given out by torch, or resident memory on a CPU, in GB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return psutil.Process().memory_info().rss / 1e9
