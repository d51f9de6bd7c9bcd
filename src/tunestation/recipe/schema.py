"""The whole recipe: what a file below recipes/ may say."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from tunestation.recipe.base import Fraction, Name, Part, Positive, RelativePath, stays_inside
from tunestation.recipe.data import Data, DataPart
from tunestation.recipe.formats import TEXT_KINDS
from tunestation.recipe.sources import FileSource, GeneratorSource, ModelSource, NewModel
from tunestation.recipe.train import Train

TEMPLATE_FILE = ".jinja"
"""How the name of a template file ends."""


def _is_beside(name: str) -> str:
    return stays_inside(name) if name.endswith(TEMPLATE_FILE) else name


TemplateName = Annotated[str, AfterValidator(_is_beside)]


class Model(Part):
    """The model to start from."""

    source: ModelSource
    """Where it is."""
    adapter: RelativePath | None = None
    """A LoRA adapter of this model, below the model volume or beside the recipe, from which training goes on: `invoke import-xtuner` writes
    such folders. Its modules are kept; with `train.epochs: 0` it is merged as it is."""


class Check(Part):
    """Questions with known answers, asked of the merged model and of the untuned one."""

    name: Name
    """Names the accuracy in the lock."""
    source: Annotated[FileSource | GeneratorSource, Field(discriminator="kind")]
    """Rows `{"prompt", "answer"}` (match: exact) or `{"prompt", "contains": [...]}` (match: contains)."""
    match: Literal["exact", "contains"] = "exact"
    """exact: the answer, letter for letter; contains: every listed text occurs in the answer."""
    variables: dict[str, str] = {}
    """Values for placeholders such as `{{name}}` in the rows' texts."""
    at_least: Fraction = 0.0
    """Share of right answers below which the stage fails."""
    at_least_of_base: Fraction = 0.0
    """The same, as a share of the untuned model's accuracy."""


class Evaluate(Part):
    """What is watched during training, and what the result must be able to do."""

    fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of the conversations held out of training for a real loss; 0 holds out none."""
    prompts: tuple[str, ...] = ()
    """Questions answered before, during and after training, kept in the record."""
    system: str | None = None
    """System text of these questions."""
    every_steps: Positive = 500
    """Optimizer steps between evaluations."""
    max_new_tokens: Positive = 100
    """Longest sample answer, in tokens."""
    checks: tuple[Check, ...] = ()
    """Asked after the merge."""


class Export(Part):
    """The merged model folder."""

    checkpoint: Literal["last", "best"] = "last"
    """best: lowest held-out loss; needs `evaluate.fraction`."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of the merged weights."""
    shard_size: Annotated[str, Field(pattern=r"^\d+(\.\d+)?(MB|GB)$")] = "2GB"
    """Largest weight file."""
    base: Literal["16bit", "nf4", "fp8"] = "16bit"
    """What the adapter of qlora is added to: the base as it is, or the weights it was trained on (`train.base.type`), read back. The merge
    says which is nearer to what was trained."""
    gguf: Literal["f16", "q8_0"] | None = None
    """Also write a GGUF file for llama.cpp and what builds on it (Ollama, LM Studio); needs the package gguf."""
    max_kl: Annotated[float, Field(ge=0)] = 0.01
    """Mean KL divergence from base + adapter to the merged model, in nats a token, above which the merge fails."""


class Generation(Part):
    """How answers are drawn on the page and in the terminal."""

    temperature: Annotated[float, Field(ge=0)] = 0.1
    """0 always takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Smallest set of tokens with this share of probability."""
    top_k: Annotated[int, Field(ge=0)] = 40
    """Likeliest tokens considered; 0 considers all."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1 discourages repetition."""
    max_new_tokens: Positive = 512
    """Longest answer, in tokens."""


class Chat(Part):
    """The chat page. In no key, but for `generation`, which is written into the merged folder: changing the rest runs nothing again."""

    title: str = ""
    """Heading of the page; the recipe's name when empty."""
    system: str | None = None
    """System text of every conversation."""
    generation: Generation = Generation()
    """How answers are drawn."""


class Runtime(Part):
    """How this machine does the work. In no key: it does not change what is learned."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    """DeepSpeed ZeRO: 1 shards optimizer states, 2 gradients, 3 weights as well; 0 shards nothing."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """Keep optimizer states (stage 1 and up), or weights as well (stage 3), in host memory."""
    deepspeed_config: RelativePath | None = None
    """A DeepSpeed JSON of your own beside the recipe; refused where it contradicts the recipe."""
    micro_batch_size: Positive = 1
    """Packs (or rows) that go through one GPU at once; divides `train.global_batch_size`."""
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    """Recompute activations in the backward pass: less memory, a third more work. auto: of as few layers as this GPU's memory asks for."""
    deterministic: bool = False
    """On a GPU, sum the gradients of attention in one order, so that equal inputs give equal bytes; up to 7 % slower, with FlashAttention 4
    (H100, H200) 1 %. A CPU has one order anyway."""
    min_gpu_memory_gb: Annotated[float, Field(gt=0)] | None = None
    """What the recipe was made for; a smaller GPU is warned about before training."""


class Recipe(Part):
    """One fine-tuning, from data to chat page."""

    schema_version: Literal[1]
    """Version of this format."""
    name: Name
    """Names the results; the file is called the same."""
    summary: str
    """One line for `invoke recipes`."""
    model: Model
    """What to start from."""
    data: Data
    """What to learn from."""
    template: TemplateName = "auto"
    """Chat template: `auto` is the model's own; or a built-in name; or a Jinja file beside the recipe, as `my.jinja`."""
    train: Train = Train()
    """How to learn."""
    evaluate: Evaluate = Evaluate()
    """What to watch and to demand."""
    export: Export = Export()
    """What to write."""
    chat: Chat = Chat()
    """The page."""
    runtime: Runtime = Runtime()
    """This machine."""

    @model_validator(mode="after")
    def _parts_agree(self) -> "Recipe":
        wrong = [sentence for clash, sentence in self._clashes() if clash]
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def _clashes(self) -> list[tuple[bool, str]]:
        new, source = isinstance(self.model.source, NewModel), self.model.source
        batch, micro = self.train.global_batch_size, self.runtime.micro_batch_size
        return [
            (new and self.train.method != "full", "train.method|a model of kind 'new' has no weights to adapt. Set it to 'full'."),
            (new and self.template == "auto", "template|a model of kind 'new' has no template of its own. Name one, as 'chatml'."),
            (new and source.hidden_size % source.num_attention_heads, "model.source.num_attention_heads|does not divide hidden_size."),
            (
                new and source.num_attention_heads % source.num_key_value_heads,
                "model.source.num_key_value_heads|does not divide num_attention_heads.",
            ),
            (
                self.export.base not in ("16bit", self.train.base.type if self.train.method == "qlora" else None),
                f"export.base|'{self.export.base}' needs train.method qlora and train.base.type {self.export.base}.",
            ),
            (self.export.checkpoint == "best" and not self.evaluate.fraction, "export.checkpoint|'best' needs evaluate.fraction above 0."),
            (self.export.checkpoint == "best" and not self.train.epochs, "export.checkpoint|'best' needs train.epochs above 0."),
            (self.model.adapter and self.train.method == "full", "train.method|'full' trains no adapter. Set it to 'qlora' or 'lora'."),
            (not self.train.epochs and not self.model.adapter, "train.epochs|0 merges an adapter as it is. Name it as model.adapter."),
            (batch % micro, f"runtime.micro_batch_size|{micro} does not divide train.global_batch_size {batch}."),
            (
                self.runtime.offload == "all" and self.runtime.zero_stage != 3,
                "runtime.offload|'all' needs runtime.zero_stage 3; stages 1 and 2 can offload the 'optimizer' only.",
            ),
            (
                self.runtime.zero_stage == 3 and self.train.method == "qlora" and self.train.base.type == "fp8",
                "train.base.type|'fp8' needs runtime.zero_stage 0, 1 or 2: stage 3 shards weights of 16 bits.",
            ),
            (self.runtime.offload == "optimizer" and self.runtime.zero_stage == 0, "runtime.offload|needs runtime.zero_stage 1, 2 or 3."),
            *(clash for place, part in enumerate(self.data.sources) for clash in self._data_clashes(f"data.sources.{place}", part)),
        ]

    def _data_clashes(self, place: str, part: DataPart) -> list[tuple[bool, str]]:
        kind, objective = part.format.kind, self.train.objective
        documents, auto = kind in TEXT_KINDS, kind == "auto"
        some, own = any(each.weight for each in self.data.sources), part.weight is not None
        return [
            (
                documents and objective == "sft",
                f"{place}.format|'{kind}' reads documents. Set train.objective to 'pretrain', or name a format of conversations.",
            ),
            (
                not documents and not auto and objective == "pretrain",
                f"{place}.format|'{kind}' reads conversations, but train.objective is 'pretrain'. Name a format of documents, as 'text'.",
            ),
            (some and not own, f"{place}.weight|is missing, but other sources have one. Give every source a weight, or none."),
            (own and part.repeat != 1, f"{place}.repeat|is set beside weight, which decides how often rows are seen. Keep one."),
        ]
