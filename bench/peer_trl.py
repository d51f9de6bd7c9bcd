"""TRL's SFTTrainer, called as its users call it: its own loop, packing, collator and loss; only the data is tokenised before."""

from __future__ import annotations

import tempfile
from itertools import chain
from statistics import mean

import torch
from cases import Case, Setting, micro_batches, rows
from measuring import CUDA, Clock, figures
from peer_transformers import model as made_by_transformers
from peer_transformers import settings

__all__ = ["measure", "model", "settings"]  # its defaults (checkpointing on, no packing) are those of transformers


def model(case: Case) -> torch.nn.Module:
    """The case's model, which says of itself that it is quantised: TRL trains such a model's adapters in bfloat16."""
    made = made_by_transformers(case)
    made.is_loaded_in_4bit = case.base == "nf4"
    return made


def tokenizer():
    """TRL asks for one although the data is tokenised."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def config(case: Case, setting: Setting, steps: int, folder: str):
    """Everything that is not said here is TRL's default."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=setting.rows,
        gradient_accumulation_steps=round(mean(len(micro_batches(case, setting, index)) for index in range(3))),
        gradient_checkpointing=setting.checkpointing,
        packing=setting.packs,
        max_length=case.length,
        optim="paged_adamw_32bit" if case.optimizer == "paged" and CUDA else "adamw_torch_fused" if CUDA else "adamw_torch",
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        use_cpu=not CUDA,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def measure(case: Case, setting: Setting, made: torch.nn.Module, steps: int, warm: int) -> dict:
    """What was measured; tokens are counted in what TRL's collator makes."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTTrainer

    clock, tokens, losses = Clock(), [], []

    class Watched(SFTTrainer):
        def get_batch_samples(self, *args, **options):
            batches, items = super().get_batch_samples(*args, **options)
            tokens.append(sum(int(batch.get("attention_mask", torch.ones_like(batch["input_ids"])).sum()) for batch in batches))
            losses.append(0.0)
            return batches, items

        def training_step(self, *args, **options):
            loss = super().training_step(*args, **options)
            losses[-1] = losses[-1] + loss
            return loss

    class Ticks(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == warm and CUDA:
                torch.cuda.reset_peak_memory_stats()
            clock.tick()

    documents = list(chain.from_iterable(rows(case, index % 3) for index in range(steps + warm + 1)))
    data = Dataset.from_list([{name: row[name] for name in ("input_ids", "labels")} for row in documents])
    with tempfile.TemporaryDirectory() as folder:
        options = config(case, setting, steps + warm, folder)
        Watched(made, options, train_dataset=data, processing_class=tokenizer(), callbacks=[Ticks()]).train()
    return figures(clock.seconds()[warm:], tokens[warm : warm + steps], [float(loss) for loss in losses[:3]])
