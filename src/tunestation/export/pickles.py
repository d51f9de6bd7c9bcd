"""Reading training checkpoints of DeepSpeed and MMEngine without running what they name.

torch's own reader builds tensors, numbers, texts and containers, and refuses every other class. The few that these two
programs store beside the weights become inert stand-ins here.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch

from tunestation.errors import InputError


class Inert:
    """Stands for an object of another program; holds nothing and does nothing."""

    def __new__(cls, *_arguments: object, **_options: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_arguments: object, **_options: object): ...

    def __setstate__(self, state: object) -> None: ...


KNOWN = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
    # a HistoryBuffer keeps its past as NumPy arrays, and names its own methods
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "builtins.getattr",
    "__builtin__.getattr",
)
"""What MMEngine and DeepSpeed store beside weights."""
STAND_INS = [*((Inert, name) for name in KNOWN), (int, "deepspeed.runtime.zero.config.ZeroStageEnum")]


def load(path: Path) -> dict:
    """The dictionary in a file of torch.save; its tensors are mapped from the file. Raises InputError for any other class, by name."""
    remedy = "It was not read. Import only checkpoints that XTuner, MMEngine or DeepSpeed wrote."
    with torch.serialization.safe_globals(STAND_INS):
        try:
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            if unknown:
                raise InputError(f"is a pickle that names {', '.join(sorted(unknown))}.", str(path), remedy)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except UnpicklingError as error:
            raise InputError(f"is a pickle that does more than store weights: {str(error).splitlines()[0]}", str(path), remedy) from None
        except InputError:
            raise
        except Exception as error:  # where bytes differ, the unpickler may fail in any way
            what = f"is not a whole file of torch.save: {(str(error) or 'it ends too early').splitlines()[0]}"
            raise InputError(what, str(path), "Copy it again.") from None
