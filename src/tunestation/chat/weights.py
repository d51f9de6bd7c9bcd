"""Which weights answer, and in which precision. No torch here."""

from __future__ import annotations

from typing import Literal, get_args

from tunestation.recipe.base import Part

Precision = Literal["16bit", "8bit", "nf4", "fp8"]
PRECISIONS = get_args(Precision)


class Weights(Part):
    """Which weights to load, and how."""

    model: str
    """Folder of a whole model: merged, or the base of `adapter`."""
    adapter: str | None = None
    """Folder of a PEFT adapter; with it the untuned model can be asked as well."""
    tokenizer: str | None = None
    """Folder whose tokenizer and chat template take the place of the model's own."""
    probe: str | None = None
    """probe.json of `prepare`, the token ids that training saw: a tokenizer that makes others is refused."""
    precision: Precision = "16bit"
    """Of the linear layers. 16bit: bfloat16, but float32 on a CPU where the folder was saved so."""
    double_quant: bool = True
    """For nf4: quantise the scales as well, as in training."""
