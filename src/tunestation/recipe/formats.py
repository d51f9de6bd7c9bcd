"""The formats of rows: what `data.sources[].format` may say."""

from typing import Annotated, Literal

from pydantic import Field

from tunestation.recipe.base import Part


class AutoFormat(Part):
    """Recognised by the columns of each file's first rows, and said; where several formats fit, `check` names them and asks."""

    kind: Literal["auto"]


class MessagesFormat(Part):
    """OpenAI's rows `{"messages": [{"role", "content"}]}` with the roles system, developer, user, assistant and tool, and optionally
    `tools`. A message may carry `loss: false` or `weight: 0`: it is then context only. `openai` is XTuner's name for it."""

    kind: Literal["messages", "openai"]
    column: str = "messages"
    """Column with the list of messages."""


class ShareGptFormat(Part):
    """ShareGPT's rows `{"conversations": [{"from", "value"}]}`, optionally `system` and `tools`. `wizardlm` is XTuner's name for it."""

    kind: Literal["sharegpt", "wizardlm"]
    column: str = "conversations"
    """Column with the list of turns."""


class ConversationFormat(Part):
    """XTuner's rows `{"conversation": [{"system", "input", "output"}]}`; a turn may carry `output_with_loss: false`."""

    kind: Literal["conversation"]


class ColumnsFormat(Part):
    """Any table: one column asks, one answers."""

    kind: Literal["columns"]
    input: str
    """Column with the user's text."""
    output: str
    """Column with the answer to learn."""
    system: str | None = None
    """Column with a system text of each row."""


class TableFormat(Part):
    """A known table, by the name of the data set that made it known. Columns and system texts are in docs/data.md; `alpaca` reads
    `{"instruction", "input", "output"}`, `prompt_completion` reads `{"prompt", "completion"}`."""

    kind: Literal[
        "alpaca",
        "alpaca_zh",
        "arxiv",
        "code_alpaca",
        "colors",
        "crime_kg_assitant",
        "crime_kg_assitan",
        "default",
        "law_reference",
        "medical",
        "openorca",
        "prompt_completion",
        "sql",
        "stack_exchange",
        "tiny_codes",
    ]


class DialogueFormat(Part):
    """A data set with turns of its own kind. `oasst1` reads a `text` in which Human and Assistant are marked; `moss` and `msagent_react`
    read tool calls; `llava` and `llava_image_only` read only rows without an image, since images cannot be trained here."""

    kind: Literal["oasst1", "moss", "msagent_react", "llava", "llava_image_only"]


class TextFormat(Part):
    """Documents to continue, for `train.objective: pretrain`."""

    kind: Literal["text"]
    column: str = "text"
    """Column with the document."""


class PretrainFormat(Part):
    """XTuner's `{"text"}` to continue, without the white space around it."""

    kind: Literal["pretrain"]


class PreferenceFormat(Part):
    """Pairs of a wanted and an unwanted answer, as texts or lists of messages. They are read and checked; training on them comes later."""

    kind: Literal["preference"]
    prompt: str = "prompt"
    """Column with the question; may be missing where `chosen` and `rejected` are lists that begin with it."""
    chosen: str = "chosen"
    """Column with the wanted answer."""
    rejected: str = "rejected"
    """Column with the unwanted answer."""
    system: str | None = None
    """Column with a system text of each row."""


Format = Annotated[
    AutoFormat
    | MessagesFormat
    | ShareGptFormat
    | ConversationFormat
    | ColumnsFormat
    | TableFormat
    | DialogueFormat
    | TextFormat
    | PretrainFormat
    | PreferenceFormat,
    Field(discriminator="kind"),
]
TEXT_KINDS = ("text", "pretrain")
"""Formats that make documents to continue; all others make conversations."""
