"""The `data` section: sources, their row formats, and what may be dropped."""

from typing import Annotated, Literal

from pydantic import Field

from tunestation.recipe.base import Fraction, Part, Positive
from tunestation.recipe.sources import DataSource


class MessagesFormat(Part):
    """Rows `{"messages": [{"role": ..., "content": ...}]}` with the roles system, user and assistant."""

    kind: Literal["messages"]


class AlpacaFormat(Part):
    """Rows `{"instruction", "input", "output"}` and optionally `system`; input may be empty."""

    kind: Literal["alpaca"]


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


Format = Annotated[MessagesFormat | AlpacaFormat | ConversationFormat | ColumnsFormat, Field(discriminator="kind")]


class DataPart(Part):
    """One source of rows and how to read them."""

    source: DataSource
    """Where the rows are."""
    format: Format = MessagesFormat(kind="messages")
    """How a row becomes a conversation."""
    system: str | None = None
    """A system text for every row that has none of its own."""
    variables: dict[Annotated[str, Field(pattern=r"^\w+$")], str] = {}
    """Values for placeholders such as `{{name}}` in the rows' texts."""
    repeat: Positive = 1
    """How often each row is seen in one epoch."""


class Data(Part):
    """What the model learns from."""

    sources: Annotated[tuple[DataPart, ...], Field(min_length=1)]
    """Read in this order, then shuffled together by `train.seed`."""
    max_dropped: Fraction = 0.01
    """Share of rows that may be untrainable (no answer, nothing left after cutting) before `prepare` fails."""
