"""train: the model learns from the prepared rows, under DeepSpeed, in one process a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import AutoConfig, TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback

from tunestation.chat.generate import batch_answers
from tunestation.errors import InputError, Interrupted, TunestationError
from tunestation.fetching.manifest import model_of
from tunestation.pipeline.job import ALWAYS, NEVER, Job, Result
from tunestation.pipeline.process import STOP
from tunestation.settings import nodes_training, world_size
from tunestation.training import checkpoints, foresight, given, outcome, zero
from tunestation.training import model as models
from tunestation.training.batches import Collate, Visits, lay, load_rows
from tunestation.training.callbacks import ClipsWithoutWaiting, FreshOptimizer, Samples, StopOnRequest, Watch
from tunestation.training.fast.adapters import joined
from tunestation.training.fast.float8 import quantise_base
from tunestation.training.fast.model import Fast, obstacle
from tunestation.training.learned import STATES, learned
from tunestation.training.memory import ALL_THERE, Host
from tunestation.training.order import Order, draw, tokens_by_step
from tunestation.training.packed import documents, pack, packable, packs
from tunestation.training.rehearsal import Rehearsal, advised
from tunestation.training.setup import Setup
from tunestation.training.trainer import RecipeTrainer, arguments, least

CHECKPOINTS = "checkpoints"


def run(params: dict, job: Job) -> Result:
    """Train; the output folder holds checkpoints/, samples.json and logs/ (TensorBoard)."""
    settings, machine = params["settings"], job.machine
    _leave_out_shared_memory_op()
    _refuse_optimizer(settings["optimizer"])
    _refuse_old_gpu(settings, machine)
    if "adapter" in params:
        given.refuse_misfit(_adapter(params, job), job.volumes.path(model_of(job.needs["fetch"]).ref))
    if not settings["epochs"]:
        return given.as_it_is(_adapter(params, job), job.output / CHECKPOINTS)
    _warn_of_small_gpu(machine["min_gpu_memory_gb"])
    accumulation = zero.accumulation_steps(settings["global_batch_size"], machine["micro_batch_size"], world_size())
    config = _zero_config(job, settings, accumulation)
    rows, held_out = load_rows(job.needs["prepare"] / "train"), load_rows(job.needs["prepare"] / "held_out")
    order = draw(len(rows), settings["epochs"], settings["global_batch_size"], settings["seed"])
    every = params["samples"]["every_steps"] if len(held_out) else None
    # before the model: it tells transformers whether weights are to be sharded while they are loaded (ZeRO-3)
    args = arguments(settings, order.steps, machine["micro_batch_size"], accumulation, config, job.output, every)
    config = args.hf_deepspeed_config.config  # a copy, and what DeepSpeed gets
    tokenizer = models.load_tokenizer(job.needs["prepare"] / "tokenizer")
    set_seed(settings["seed"])
    lengths = [len(ids) for ids in rows["input_ids"]]
    host = _waits(params, job, lengths, config, args)
    model = _build(params, job, tokenizer, config, host)
    zero.set_buckets(config, models.trainable(model))
    if config["zero_optimization"]["stage"] == 3:
        zero.set_gathering(config, models.stored(model) // model.config.num_hidden_layers)
    fast, why_not = _fast(model, settings, job.machine, config, host, _joins(job.output / CHECKPOINTS, args))
    setup = foresight.setup_of(model, settings, machine, fast is not None)
    trainer = _trainer(params, job, model, fast, setup, tokenizer, args, rows, lengths, held_out, order)
    result = _train(trainer, job, order, setup, max(lengths))
    step = f"transformers' own step, since {why_not}" if fast is None else f"the fast step, {fast.choice.told}"
    observed = result.observed | {"step": step} | foresight.planned(setup, fast, rows)
    return replace(result, repeats=_repeats(trainer.in_order), observed=observed)


def _repeats(in_order: str) -> str:
    """What `Result.repeats` says of a training whose gradients were all summed in one order by what `in_order` names, if by anything."""
    return in_order or NEVER if torch.cuda.is_available() else ALWAYS


def _adapter(params: dict, job: Job) -> Path:
    return job.volumes.path(params["adapter"]["ref"])


def _leave_out_shared_memory_op() -> None:
    """On a CPU DeepSpeed would compile a C++ all-reduce for 40 s at its first start; gloo does the same without a compiler."""
    from deepspeed.ops import __compatible_ops__ as compatible

    compatible["deepspeed_shm_comm"] = False


def _refuse_optimizer(name: str) -> None:
    if name != "adamw" and not torch.cuda.is_available():
        remedy = "Use adamw (--set train.optimizer=adamw)."
        raise InputError(f"train.optimizer '{name}' needs a CUDA GPU, and there is none.", remedy=remedy)


def _refuse_old_gpu(settings: dict, machine: dict) -> None:
    if not torch.cuda.is_available():
        return
    found = torch.cuda.get_device_capability(models.device())
    has = f"this one has {found[0]}.{found[1]}."
    if settings["method"] == "qlora" and settings["base"]["type"] == "fp8" and found < (8, 9):
        what = f"train.base.type 'fp8' needs a GPU of compute capability 8.9 or more; {has}"
        raise InputError(what, remedy="Use nf4 (--set train.base.type=nf4).")
    if machine["deterministic"] and found < (8, 0):
        what = f"runtime.deterministic needs FlashAttention, and that a GPU of compute capability 8.0 or more; {has}"
        raise InputError(what, remedy="Leave it out (--set runtime.deterministic=false).")


def _warn_of_small_gpu(wanted_gb: float | None) -> None:
    if wanted_gb and torch.cuda.is_available():
        found = torch.cuda.get_device_properties(models.device()).total_memory / 1e9
        if found < wanted_gb:
            print(f"  warning: this GPU has {found:.0f} GB; the recipe was made for {wanted_gb:g} GB and may run out of memory", flush=True)


def _zero_config(job: Job, settings: dict, accumulation: int) -> dict:
    machine = job.machine
    made = zero.make(
        machine["zero_stage"], machine["offload"], machine["micro_batch_size"], accumulation, settings["max_grad_norm"]
    )
    own = machine["deepspeed_config"]
    return zero.merge_users(job.volumes.path(f"recipe:{own}"), made) if own else made


def _waits(params: dict, job: Job, lengths: list[int], config: dict, args: TrainingArguments) -> Host:
    """What waits in host memory from the start, lest loading need more of the GPU than training: the rehearsal decides again.

    All processes answer alike, as DeepSpeed hands every weight of the first one to the others.
    """
    base = model_of(job.needs["fetch"])
    if not torch.cuda.is_available() or base is None or config["zero_optimization"]["stage"] == 3:
        return ALL_THERE
    free = least(torch.cuda.mem_get_info(models.device())[0], args)
    tokens = sum(sorted(lengths)[-job.machine["micro_batch_size"] :])
    shape = AutoConfig.from_pretrained(job.volumes.path(base.ref), local_files_only=True)
    return foresight.waits(shape, params["settings"], job.machine, tokens, free)


def _build(params: dict, job: Job, tokenizer: object, config: dict, host: Host) -> torch.nn.Module:
    settings, sharded = params["settings"], config["zero_optimization"]["stage"] == 3
    base = model_of(job.needs["fetch"])
    if base is None:
        model = models.new_model(params["new_model"], tokenizer)
    else:
        quantise = settings["base"] if settings["method"] == "qlora" and settings["base"]["type"] == "nf4" else None
        model = models.load_base(job.volumes.path(base.ref), quantise, sharded, host)
    model.config.use_cache = False
    if "adapter" in params:
        model = models.go_on_from(model, _adapter(params, job), settings["lora"]["dropout"], base.name)
    elif settings["method"] != "full":
        model = models.add_adapters(model, settings["lora"], base.name)
    print(f"  {models.trainable(model):,} of {models.total(model):,} weights learn, on {models.device()}", flush=True)
    return model


def _fast(
    model: torch.nn.Module, settings: dict, machine: dict, config: dict, host: Host, joins: bool
) -> tuple[Fast | None, str | None]:
    """The fast step in place; or why transformers' own is taken."""
    reason = "ZeRO-3 shards the weights" if config["zero_optimization"]["stage"] == 3 else obstacle(model, settings["max_tokens"])
    if settings["method"] == "qlora" and settings["base"]["type"] == "fp8":
        quantise_base(model, models.device())
    if reason is None:
        most = settings["max_tokens"] * machine["micro_batch_size"]
        fast = Fast.over(model, host, models.device(), machine["deterministic"], most)
        if joins:
            fast.join()
        return fast, None
    print(f"  step: transformers' own, since {reason}", flush=True)
    if machine["deterministic"] and torch.cuda.is_available():
        print("  warning: runtime.deterministic has no effect on it: on a GPU other bytes may come of equal inputs", flush=True)
    if packable(models.plain(model), settings["max_tokens"]):
        pack(models.plain(model))
    if machine["gradient_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return None, reason


def _joins(folder: Path, args: TrainingArguments) -> bool:
    """Whether adapters learn as one weight a layer: as in the checkpoints below `folder`, else on a GPU alone. All processes answer alike.

    A CPU waits for arithmetic, not for the host's calls.
    """
    found = checkpoints.complete(folder)
    wanted = checkpoints.stamp_of(found[-1]).joined if found else torch.cuda.is_available()
    return bool(least(int(wanted), args))


def _trainer(params, job, model, fast, setup: Setup, tokenizer, args, rows, lengths, held_out, order: Order) -> RecipeTrainer:
    settings, samples = params["settings"], params["samples"]
    tokens = tokens_by_step(order, lengths, settings["global_batch_size"])
    collate = lay if fast else documents if packs(models.plain(model)) else Collate(tokenizer.pad_token_id)
    talk = [[*_system(samples), {"role": "user", "content": prompt}] for prompt in samples["prompts"]]

    def answer() -> list[str]:
        return batch_answers(model, tokenizer, talk, samples["max_new_tokens"]) if talk else []

    callbacks = [
        _rehearsal(params, job, model, fast, setup, collate, rows, lengths, held_out, lambda: trainer),
        TensorBoardCallback(SummaryWriter(log_dir=str(job.output / "logs"))),
        Samples(answer, samples["every_steps"], job.output / "samples.json"),
        Watch(tokens, order.steps),  # after the first answers, which are no part of the steps' time
        StopOnRequest(stop_file(job)),
        *{0: [FreshOptimizer()], 3: []}.get(job.machine["zero_stage"], [ClipsWithoutWaiting()]),
    ]
    trainer = RecipeTrainer(
        folder=job.output / CHECKPOINTS,
        keep=settings["keep"],
        zero_stage=job.machine["zero_stage"],
        held_out=[held_out[index] for index in range(len(held_out))],
        collate=collate,
        model=model,
        args=args,
        train_dataset=Visits(rows, order.visits),
        eval_dataset=held_out,
        callbacks=callbacks,
        in_order=fast.made_by if fast and fast.in_order and torch.cuda.is_available() and world_size() == 1 else "",
    )
    return trainer


def _rehearsal(params, job, model, fast, setup: Setup | None, collate, rows, lengths, held_out, trainer: Callable) -> Rehearsal:
    """`trainer` gives the trainer, which is made with the rehearsal."""
    settings, machine, count = params["settings"], job.machine, models.trainable(model)
    longest = sorted(range(len(rows)), key=lambda index: -lengths[index])[: machine["micro_batch_size"]]
    evaluated = max(held_out, key=lambda row: len(row["input_ids"]), default=None)
    folder = job.output / CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    optimizer, stage, offload = settings["optimizer"], machine["zero_stage"], machine["offload"]
    accumulation = zero.accumulation_steps(settings["global_batch_size"], machine["micro_batch_size"], world_size())
    gradients = learned(optimizer, stage, offload, world_size(), accumulation > 1, count)
    # without ZeRO DeepSpeed has made Adam's states by now
    states = STATES[optimizer] * count // world_size() if stage and offload == "none" else 0
    found, kept = [rows[index] for index in longest], settings["keep"] + 2
    late = (lambda path: trainer().save_model(path), lambda: trainer().share_weights(), partial(foresight.advice, setup))
    return Rehearsal(model, fast, collate, found, evaluated, folder, kept, states, gradients, setup, *late)


def _system(samples: dict) -> list[dict]:
    return [{"role": "system", "content": samples["system"]}] if samples["system"] else []


def stop_file(job: Job) -> Path:
    """The file with which the parent asks this stage to stop."""
    return Path(job.machine["logs"]) / STOP


def _train(trainer: RecipeTrainer, job: Job, order: Order, setup: Setup, longest: int) -> Result:
    folder = job.output / CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    machine = job.machine
    world = checkpoints.World(
        world_size(), nodes_training(), machine["micro_batch_size"], machine["zero_stage"], joined(trainer.model)
    )
    checkpoint = checkpoints.to_resume(folder, world, partial(least, args=trainer.args))
    if checkpoint:
        print(f"  going on from {checkpoint.name}", flush=True)
        trainer.in_order = checkpoints.stamp_of(checkpoint).in_one_order(trainer.in_order)
    tokens = longest * job.machine["micro_batch_size"]
    with checkpoints.trusted_classes_only(checkpoint), advised(tokens, partial(foresight.advice, setup)):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    watch, samples, stop = (_callback(trainer, kind) for kind in (Watch, Samples, StopOnRequest))
    if stop.stopped:
        raise Interrupted(f"stopped at step {trainer.state.global_step} of {order.steps}; a complete checkpoint is kept.",
                          remedy="The same command goes on from there.")
    if not checkpoints.complete(folder):
        raise TunestationError("training ended without a checkpoint.")
    trainer.prune()  # it may have been killed between its last checkpoint and the end
    return outcome.result(trainer, watch, samples, order)


def _callback(trainer: RecipeTrainer, kind: type) -> object:
    return next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kind))
