"""Texts: documents to continue, and dialogues written as one text."""

from __future__ import annotations

import re
from typing import Any

from tunestation.data.formats.message import Draft, Message
from tunestation.data.formats.registry import row_format
from tunestation.data.formats.values import Unusable, column
from tunestation.data.readers.row import Row

SPEAKER = re.compile(r"###[ ]*(Human|Assistant):")
ROLE = {"Human": "user", "Assistant": "assistant"}


@row_format("text", columns=lambda params: (params.column,))
def _text(params: Any, row: Row) -> Draft:
    """A column with a document, as it is."""
    return Draft(text=column(row, params.column))


@row_format("pretrain", columns=lambda params: ("text",))
def _pretrain(params: Any, row: Row) -> Draft:
    """XTuner's `{"text"}`: without the white space around it."""
    return Draft(text=column(row, "text").strip())


@row_format("oasst1", columns=lambda params: ("text",))
def _oasst1(params: Any, row: Row) -> Draft:
    """A dialogue as one text, `### Human: ... ### Assistant: ...`.

    The data set puts `### Assistant:` behind a question without a newline, so only the whole marker counts, wherever it
    stands; `###` alone is a heading of somebody's answer. XTuner splits at every `###` and loses what follows there.
    """
    before, *turns = SPEAKER.split(column(row, "text"))
    if before.strip():
        raise Unusable(f"the text begins with {before.strip()[:40]!r}, not with '### Human:'")
    return Draft([Message(ROLE[speaker], said.strip()) for speaker, said in zip(turns[::2], turns[1::2], strict=True)])
