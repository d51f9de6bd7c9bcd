"""The `train` section. Defaults are XTuner's, where it has one."""

from typing import Annotated, Literal

from pydantic import Field

from tunestation.recipe.base import Fraction, Part, Positive


class Base(Part):
    """How the frozen weights are held while LoRA adapters are trained. Has an effect with `method: qlora`."""

    type: Literal["nf4", "fp8", "bf16"] = "nf4"
    """nf4: 4-bit NormalFloat (QLoRA, arXiv 2305.14314); fp8: 8-bit floats with a scale for each row, nearer to the model than nf4 and
    faster, in four times its memory, on GPUs of compute capability 8.9 and up; bf16: as they are."""
    double_quant: bool = True
    """Quantise the block scales as well: 4.13 instead of 4.5 bits a weight. Has an effect with `type: nf4`."""


class Lora(Part):
    """Low-rank adapters (arXiv 2106.09685). Has an effect with `method: qlora` and `lora`."""

    rank: Positive = 64
    """Rank of the update."""
    alpha: Annotated[float, Field(gt=0)] = 16
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout on the adapter's input."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Layers to adapt: every linear layer but the head (with a mixture of experts: the attention's), or a list of names."""


class Train(Part):
    """How the model learns."""

    method: Literal["qlora", "lora", "full"] = "qlora"
    """qlora: adapters over a base held as `base` says; lora: adapters over a bfloat16 base; full: every weight."""
    objective: Literal["sft", "pretrain"] = "sft"
    """sft: learn the answers of conversations; pretrain: learn every token of documents (`data.sources[].format` of kind `text`)."""
    epochs: Annotated[float, Field(ge=0, le=1000)] = 3
    """Passes over the data, 1000 at most; the steps are epochs x packs / global_batch_size, rounded. 0 trains nothing, and `model.adapter`
    is merged as it is."""
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """What is learned of a conversation: every answer with its stop token; the last answer alone; or every token."""
    max_tokens: Annotated[int, Field(ge=8)] = 2048
    """Longest row in tokens, and the size of a pack."""
    packing: bool = True
    """Lay several conversations into one row of `max_tokens`; each attends to itself alone."""
    global_batch_size: Positive = 16
    """Packs (or rows, without packing) in one optimizer step: the same on one GPU and on eight."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; when unset 2e-4 for qlora and lora, 2e-5 for full."""
    optimizer: Literal["adamw", "paged_adamw_32bit", "adamw_8bit"] = "adamw"
    """paged_adamw_32bit and adamw_8bit are bitsandbytes' and need a GPU."""
    betas: tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=0, lt=1)]] = (0.9, 0.999)
    """Adam's decay rates."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this global norm."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after warm-up: cosine or linear to 0, or constant."""
    warmup: Fraction = 0.03
    """Share of the steps with a linearly rising learning rate."""
    save_steps: Positive = 500
    """Optimizer steps between checkpoints; the last step always saves one."""
    keep: Positive = 2
    """Newest checkpoints kept; the best by held-out loss is kept beside them."""
    base: Base = Base()
    """The frozen weights of qlora."""
    lora: Lora = Lora()
    """The adapters of qlora and lora."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seeds initial weights, dropout and the order of the data."""

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or the usual one of the method."""
        return self.learning_rate or (2e-5 if self.method == "full" else 2e-4)
