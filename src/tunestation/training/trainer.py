"""transformers' Trainer with our order of data, held-out loss and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from tunestation.settings import nodes_training
from tunestation.training import checkpoints
from tunestation.training.batches import placed
from tunestation.training.fast.adapters import joined
from tunestation.training.loss import IGNORE, mean_over_batch, of_outputs

Collator = Callable[[list[dict]], dict]
"""`batches.lay` for the fast step, `packed.documents` or `batches.Collate` for transformers' own."""


class RecipeTrainer(Trainer):
    """One epoch over the drawn visits; a checkpoint appears under its name only when it is complete."""

    def __init__(
        self, *, folder: Path, keep: int, zero_stage: int, held_out: list[dict], collate: Collator, in_order: str, **options: object
    ):
        super().__init__(compute_loss_func=mean_over_batch, data_collator=collate, **options)
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.folder = folder
        self.keep = keep
        self.zero_stage = zero_stage
        self.held_out = held_out
        self.held_out_loss: dict[int, float] = {}
        self.in_order = in_order
        """What has summed all gradients so far in one order, on one GPU; empty if nothing has."""

    def _get_train_sampler(self, train_dataset: object = None) -> SequentialSampler:
        return SequentialSampler(train_dataset or self.train_dataset)

    def _prepare_inputs(self, inputs: dict) -> dict:
        return placed(super()._prepare_inputs(inputs), self.args.device)

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor | float | None:
        """DeepSpeed has clipped already. Its norm stays on the GPU until it is logged: accelerate reads it after each step, which would
        make the host wait for the GPU, and then the GPU for the host."""
        return model.get_global_grad_norm()

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: torch.Tensor | float | None = None) -> torch.Tensor | float | None:
        return grad_norm

    def evaluate(self, *_args: object, **_options: object) -> dict[str, float]:
        """Mean loss over all held-out labelled tokens (Trainer's own averages batches); the same number on every rank."""
        step = self.state.global_step
        if self.held_out and step not in self.held_out_loss:
            self.held_out_loss[step] = held_out_loss(self.model, self.held_out, self.data_collator, self.args.device)
            self.log({"eval_loss": self.held_out_loss[step]})
        return {"eval_loss": self.held_out_loss.get(step, float("nan"))}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Adapters are saved by themselves: Trainer would first copy the whole frozen base to host memory."""
        if hasattr(self.model, "peft_config") and self.zero_stage < 3:
            if self.is_world_process_zero():
                self.model.save_pretrained(output_dir, safe_serialization=True, save_embedding_layers=False)
        else:
            super().save_model(output_dir, _internal_call)

    def floating_point_ops(self, inputs: dict) -> int:
        """None under ZeRO-3, where transformers would count the weights that happen to be brought together."""
        return 0 if self.zero_stage == 3 else super().floating_point_ops(inputs)

    def share_weights(self) -> None:
        """Under ZeRO-3: what was run outside of a step has left weights brought together; each process keeps its share again."""
        if self.zero_stage == 3:
            self.deepspeed.optimizer._partition_all_parameters()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Weights are written on node 0 alone; the other nodes keep only what their own processes need to go on."""
        if self.is_world_process_zero():
            super()._save(output_dir, state_dict)

    def _get_output_dir(self, trial: object) -> str:
        return str(self.folder / checkpoints.SAVING)

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        step = self.state.global_step
        if step % self.args.save_steps == 0 or step == self.state.max_steps:
            self.evaluate()  # a checkpoint asked for in between leaves no trace: resuming from it changes no byte
        super()._save_checkpoint(model, trial)
        self._wait()
        if self.args.should_save:
            saving = self.folder / checkpoints.SAVING
            (saved,) = saving.glob("checkpoint-*")
            for name in ("training_args.bin", "README.md"):  # a pickle that nothing reads, and an empty model card
                (saved / name).unlink(missing_ok=True)
            if not (saved / "latest").exists():  # DeepSpeed writes it on node 0 alone, and reads it on every node
                (saved / "latest").write_text(next(saved.glob("global_step*")).name, encoding="utf-8")
            checkpoints.seal(saving, self.folder, self._stamp(step))
        self._wait()  # until every node has it: only then may an older one go
        self.prune()
        self._wait()

    def prune(self) -> None:
        """Drop the checkpoints of this node that are not to be kept."""
        if self.args.should_save:
            checkpoints.prune(self.folder, self.keep, self.args.save_steps)

    def _stamp(self, step: int) -> checkpoints.Stamp:
        micro = self.args.per_device_train_batch_size
        loss, one = self.held_out_loss.get(step), joined(self.model)
        return checkpoints.Stamp(step, self.args.world_size, micro, self.zero_stage, loss, nodes_training(), one, self.in_order)

    def _wait(self) -> None:
        if self.args.world_size > 1:
            distributed.barrier()


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, rows: list[dict], collate: Collator, device: torch.device) -> float:
    """Mean negative log-likelihood of all labelled tokens of `rows`, each rank taking its share.

    Every rank runs the same number of forward passes (ZeRO-3 gathers weights together); a spare one counts for nothing.
    """
    training = model.training
    model.eval()
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    for start in range(0, len(rows), world):
        mine = start + rank
        batch = placed(collate([rows[mine % len(rows)]]), device)
        labels = batch.pop("labels")
        loss = of_outputs(model(**batch, use_cache=False), labels)
        if mine < len(rows):
            totals += torch.stack([loss.double(), (labels[:, 1:] != IGNORE).sum().double()])
    if world > 1:
        distributed.all_reduce(totals)
    model.train(training)
    return (totals[0] / totals[1]).item()


def least(number: int, args: TrainingArguments) -> int:
    """The smallest of the numbers that all processes call this with."""
    if args.world_size == 1:
        return number
    found = torch.tensor([number], device=args.device)
    distributed.all_reduce(found, op=distributed.ReduceOp.MIN)
    return int(found.item())


def arguments(
    settings: dict, steps: int, micro: int, accumulation: int, zero: dict, output: Path, every_steps: int | None
) -> TrainingArguments:
    """TrainingArguments of a recipe's `train` section; `settings` is that section as JSON, `zero` the DeepSpeed configuration."""
    cuda = torch.cuda.is_available()
    optimizers = {"adamw": "adamw_torch", "paged_adamw_32bit": "paged_adamw_32bit", "adamw_8bit": "adamw_bnb_8bit"}
    schedules = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
    return TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type=schedules[settings["schedule"]],
        warmup_steps=round(settings["warmup"] * steps),
        optim=optimizers[settings["optimizer"]],
        adam_beta1=settings["betas"][0],
        adam_beta2=settings["betas"][1],
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["max_grad_norm"],
        seed=settings["seed"],
        data_seed=settings["seed"],
        bf16=True,
        use_cpu=not cuda,
        ddp_backend="nccl" if cuda else "gloo",
        save_on_each_node=nodes_training() > 1,
        deepspeed=zero,
        save_strategy="steps",
        save_steps=settings["save_steps"],
        eval_strategy="steps" if every_steps else "no",
        eval_steps=every_steps,
        logging_steps=1 if steps <= 200 else 10,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        accelerator_config={"non_blocking": cuda},  # else the host waits for all that the GPU has been given, at each micro-batch
        average_tokens_across_devices=True,
        log_level="warning",
    )
