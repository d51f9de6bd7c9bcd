"""What a family's module says about it: which tensors become which, and how the configuration is rewritten. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Rows:
    """How the rows of one matrix belong to several: `groups` times over, `parts[i]` rows for the i-th."""

    groups: int
    parts: tuple[int, ...]

    @property
    def total(self) -> int:
        """Rows of the one matrix."""
        return self.groups * sum(self.parts)


@dataclass(frozen=True)
class Line:
    """One line of a family's table: a module in its own layout, and in ours. `*` is the number of the layer.

    Holds for `.weight`, for `.bias` where there is one, and for the matrices of a LoRA adapter.
    """

    theirs: str
    ours: tuple[str, ...]
    rows: Rows | None = None
    """How the rows are shared out among several modules of ours."""
    change: Literal["", "unit_rows"] = ""
    """unit_rows: every row is divided by its length, as the family's head does at each step."""

    def theirs_of(self, layer: int) -> str:
        """Their module in one layer."""
        return self.theirs.replace("*", str(layer))

    def ours_of(self, layer: int) -> tuple[str, ...]:
        """Our modules in one layer."""
        return tuple(name.replace("*", str(layer)) for name in self.ours)


@dataclass(frozen=True)
class Limit:
    """The length up to which the converted model computes what the original computes."""

    tokens: int
    why: str


@dataclass(frozen=True)
class Chat:
    """How a chat model of the family talks."""

    template: str
    """Name of a built-in template."""
    stop: tuple[str, ...] = ()
    """Tokens that end an answer besides eos."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer that the family came with, and what our tokenizer.json adds to it."""

    file: str
    """tokenizer.model (SentencePiece) or qwen.tiktoken."""
    bos: int | str | None = None
    eos: int | str | None = None
    pad: int | str | None = None
    unk: int | str | None = None
    """These four by id, or by text where it follows the file's last."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Pieces that got another spelling after the file was made: old -> new; they are control tokens."""
    control: tuple[str, ...] = ()
    """Control tokens that the file holds as ordinary pieces."""
    added: tuple[str, ...] = ()
    """Control tokens that follow the last id of the file."""
    begin: tuple[str, ...] = ()
    """Tokens that every text begins with."""
    respelled: dict[str, str] = field(default_factory=dict)
    """What of the source's own chat template is spelled otherwise here: old -> new."""
    pattern: str = ""
    """tiktoken: how text is cut before ranks apply."""


@dataclass(frozen=True)
class Family:
    """One family and its way into a native architecture."""

    name: str
    target: str
    """model_type of the result."""
    is_theirs: Callable[[dict], bool]
    """Whether a config.json is of this family."""
    layers: Callable[[dict], int]
    table: Callable[[dict], tuple[Line, ...]]
    config: Callable[[dict, bool], dict]
    """(their config.json, whether attention has biases) -> what of ours depends on the family."""
    vocabulary: Callable[[dict], Vocabulary]
    ignored: tuple[str, ...] = ()
    """Ends of the names of tensors that hold nothing learned."""
    refusal: Callable[[dict], str] = lambda config: ""
    """Why a variant cannot be converted; empty if it can."""
    limit: Callable[[dict], Limit | None] = lambda config: None
    chat: Callable[[dict], Chat | None] = lambda files: None
    """From {generation, tokenizer}, the source's JSON files: how it talks; None for a base model."""
    version: int = 1
    """Raised whenever the same source would become other bytes."""

    def obstacle(self, config: dict) -> str:
        """Why a model with this config.json cannot be converted: a variant, or a field that is missing or wrong. Empty if it can."""
        try:
            if reason := self.refusal(config):
                return reason
            self.table(config), range(self.layers(config)), self.config(config, True), self.vocabulary(config), self.limit(config)
        except KeyError as error:
            return f"its config.json has no {error}"
        except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
            return f"a value in its config.json is none that the family has ({error})"
        return ""


def same_shape(names: dict[str, str]) -> tuple[Line, ...]:
    """Lines for modules that keep their shape: their name -> ours."""
    return tuple(Line(theirs, (ours,)) for theirs, ours in names.items())


ATTENTION = tuple(f"model.layers.*.self_attn.{name}_proj" for name in "qkv")
"""Where every architecture of ours has query, key and value."""
