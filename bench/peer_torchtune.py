"""torchtune's QLoRA step, as its recipe lora_finetune_single_device does it, on the weights that the other stacks have.

torchtune 0.6.1, its last release, names no bound for torchao but imports what torchao 0.16 and 0.18 dropped; it ran here with torchao 0.15
beside torch 2.11 and 2.13. Its NF4 has scales of its own (8-bit integers of 256 blocks), so losses differ from bitsandbytes' in the third
digit. Adapters are in bfloat16, the loss is its chunked cross-entropy.
"""

from __future__ import annotations

from itertools import pairwise
from unittest import mock

import torch
from cases import Case, Setting, counted, micro_batches
from measuring import CUDA
from models import build
from step import optimizer, timed

LAYERS = ("q_proj", "k_proj", "v_proj", "output_proj")


def settings(case: Case) -> list[Setting]:
    """Its recipe's defaults (checkpointing on, not compiled, no packing), and what its recipe says is faster."""
    if case.documents:
        return [Setting(8, True, default=True), Setting(4, False, packs=True, compiled=True), Setting(2, False, packs=True, compiled=True)]
    if case.gib:
        return [Setting(rows, True, default=rows == case.sequences) for rows in sorted({case.sequences, 1}, reverse=True)]
    return [Setting(8, True, default=True), Setting(8, False, compiled=True), Setting(4, False, compiled=True)]


def model(case: Case) -> torch.nn.Module:
    """The case's model, its weights and adapters carried over into torchtune's own."""
    from torchtune import training
    from torchtune.models.llama3 import lora_llama3
    from torchtune.modules.peft import get_adapter_params, set_trainable_params

    with mock.patch("peft.tuners.lora.torchao.is_torchao_available", return_value=False):  # peft refuses torchtune's torchao
        theirs = build(case.shape, "bf16", case.rank, case.dropout)
    config, device = theirs.config, next(theirs.parameters()).device
    with training.set_default_dtype(torch.bfloat16), device:
        made = lora_llama3(
            list(LAYERS),
            apply_lora_to_mlp=True,
            vocab_size=config.vocab_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            embed_dim=config.hidden_size,
            max_seq_len=case.length,
            intermediate_dim=config.intermediate_size,
            norm_eps=config.rms_norm_eps,
            rope_base=config.rope_parameters["rope_theta"],
            lora_rank=case.rank,
            lora_alpha=16,
            lora_dropout=case.dropout,
            quantize_base=case.base == "nf4",
        )
    set_trainable_params(made, get_adapter_params(made))
    missing, strange = made.load_state_dict(converted(theirs), strict=False)
    if missing or strange:
        raise RuntimeError(f"torchtune's model lacks {missing[:3]} and does not know {strange[:3]}")
    return made.train()


def converted(theirs: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a peft model under torchtune's names; its rotary embedding turns neighbouring columns, so heads are laid anew."""
    from torchtune.models.convert_weights import _FROM_HF, get_mapped_key, hf_to_tune

    config, base, found = theirs.config, {}, {}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in theirs.get_base_model().state_dict().items():
        if "lora_" not in name:
            base[name.replace(".base_layer", "")] = weight
            continue
        layer, _, kind = name.removesuffix(".default.weight").rpartition(".")
        of = heads.get(layer.rpartition(".")[2])
        if kind == "lora_B" and of:
            weight = weight.view(of, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        found[f"{get_mapped_key(f'{layer}.weight', _FROM_HF).removesuffix('.weight')}.{kind.lower()}.weight"] = weight
    return found | hf_to_tune(base, config.num_attention_heads, config.num_key_value_heads, config.hidden_size)


class Step:
    """One optimizer step of the recipe's loop, without its logging."""

    def __init__(self, made: torch.nn.Module, case: Case, setting: Setting):
        from torchtune import modules, training
        from torchtune.modules.loss import CEWithChunkedOutputLoss

        self.model, self.loss = made, CEWithChunkedOutputLoss()
        if setting.compiled:
            torch.compiler.reset()  # what earlier settings compiled counts against the number of versions that torch keeps
            training.compile_model(made)
            training.compile_loss(self.loss)
        if setting.checkpointing:
            training.set_activation_checkpointing(made, auto_wrap_policy={modules.TransformerSelfAttentionLayer})
        made.set_num_output_chunks(self.loss.num_output_chunks)
        self.optimizer = optimizer(made, case)

    def __call__(self, batches: list[dict], items: int) -> torch.Tensor:
        from torchtune import training

        total = 0.0
        for batch in batches:
            batch = dict(batch)
            labels, count = batch.pop("labels"), batch.pop("count")
            loss = self.loss(self.model(**batch), labels) * count
            loss.backward()
            total = total + loss.detach()
        training.scale_grads(self.model, torch.tensor(1 / items))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total / items


def tensors(laid: list[dict], case: Case, packs: bool) -> dict:
    """A micro-batch as torchtune's collators make it, labels moved to where they are predicted."""
    from torchtune.data import padded_collate_packed, padded_collate_sft

    if packs:
        batch = padded_collate_packed([packed(row, case.length) for row in laid])
    else:
        batch = padded_collate_sft([{"tokens": row["input_ids"], "labels": row["labels"]} for row in laid])
    labels = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    return batch | {"labels": labels, "count": (labels != -100).sum()}


def packed(row: dict, size: int) -> dict:
    """A pack as torchtune's PackedDataset lays it: filled up to `size`, what fills it being a document of its own."""
    gap = size - len(row["input_ids"])
    starts = [place for place, position in enumerate(row["position_ids"]) if position == 0] + [len(row["input_ids"])]
    lengths = [end - start for start, end in pairwise(starts)]
    parts = {
        "tokens": row["input_ids"] + [0] * gap,
        "labels": row["labels"] + [-100] * gap,
        "input_pos": row["position_ids"] + list(range(gap)),
        "seq_lens": lengths + [gap] * (gap > 0),
    }
    return {name: torch.tensor(values) for name, values in parts.items()}


def measure(case: Case, setting: Setting, made: torch.nn.Module, steps: int, warm: int) -> dict:
    """What was measured."""
    device, batches, items = torch.device("cuda" if CUDA else "cpu"), [], []
    for index in range(3):
        items.append(counted(case, index)[1])
        laid = [tensors(micro, case, setting.packs) for micro in micro_batches(case, setting, index)]
        batches.append([{name: value.to(device) for name, value in batch.items()} for batch in laid])
    tokens = sum(counted(case, index)[0] for index in range(3)) / 3
    return timed(Step(made, case, setting), batches, items, tokens, steps, warm)
