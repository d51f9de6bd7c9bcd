"""Where the tensors lie in a safetensors file, or in a pickle of PyTorch's. Nothing of a pickle is built but tensors without content."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tunestation.errors import InputError
from tunestation.models.headers import AGAIN, Entry, entries

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""How the safetensors format spells a dtype."""
SAFE = "Fetch it again, or use a revision with safetensors."


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    meta: torch.Tensor
    """Its shape, dtype and strides, on the device `meta`."""
    offset: int
    """Bytes from the start of the file to its first number."""

    @property
    def extent(self) -> int:
        """Numbers from its first to its last, that one included, as they lie in the file."""
        steps = zip(self.meta.shape, self.meta.stride(), strict=True)
        return 1 + sum((size - 1) * step for size, step in steps) if self.meta.numel() else 0


def stored_in(path: Path) -> dict[str, Stored]:
    """Name -> place of every tensor in `path`, in the order of the file. Raises InputError for what is no such file."""
    return _in_safetensors(path) if path.suffix == ".safetensors" else _in_pickle(path)


def _in_safetensors(path: Path) -> dict[str, Stored]:
    return {name: _stored_as(path, name, entry) for name, entry in entries(path).items()}


def _stored_as(path: Path, name: str, entry: Entry) -> Stored:
    kind, size = DTYPES.get(entry.dtype), entry.end - entry.begin
    if kind is None:
        what = f"holds {name} as {entry.dtype}, which is not read; {', '.join(DTYPES)} are."
        raise InputError(what, str(path), "Use a revision of the model that is not quantised.")
    if size != prod(entry.shape) * kind.itemsize:
        what = f"says that {name} is {entry.dtype} {list(entry.shape)}, but has {size} bytes for it."
        raise InputError(what, str(path), AGAIN)
    return Stored(torch.empty(entry.shape, dtype=kind, device="meta"), entry.begin)


def _in_pickle(path: Path) -> dict[str, Stored]:
    """A zip of one pickle, which names tensors, and of their bytes as they are; only a pickle that builds nothing else is read."""
    _refuse_objects(path)
    _refuse_packed(path)
    try:
        with FakeTensorMode():  # tensors without content, whose storages know their place in the file
            content = torch.load(path, map_location="cpu", weights_only=True)
    except NotImplementedError:
        raise InputError("holds quantised tensors, which are not read.", str(path), SAFE) from None
    items = content.items() if isinstance(content, dict) else ()
    tensors = {name: value for name, value in items if isinstance(name, str) and isinstance(value, torch.Tensor)}
    if not tensors:
        raise InputError("holds no tensors by name at its top.", str(path), "Save a state dict: torch.save(model.state_dict(), ...).")
    if odd := [name for name, value in tensors.items() if value.layout != torch.strided or value.dtype not in DTYPES.values()]:
        value = tensors[odd[0]]
        what = f"holds {odd[0]} as {value.dtype} ({value.layout}), which is not read; dense {', '.join(DTYPES)} are."
        raise InputError(what, str(path), SAFE)
    return {name: _stored(value) for name, value in tensors.items()}


def _stored(value: torch.Tensor) -> Stored:
    """With the strides as they are: `to("meta")` would make those of a view with gaps contiguous."""
    meta = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return Stored(meta, _offset(value))


def _offset(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._checkpoint_offset + tensor.storage_offset() * tensor.itemsize


def _refuse_objects(path: Path) -> None:
    """Look, without building anything, for what else than tensors a pickle would import."""
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError) as error:
        what = f"is not a file that torch.save wrote, is cut, or is from before torch 1.6 ({str(error).splitlines()[0]})."
        raise InputError(what, str(path), SAFE) from None
    if wanted:
        what = f"is a pickle that wants more than tensors: {', '.join(sorted(wanted))}. It was not read."
        raise InputError(what, str(path), "Use a safetensors revision of this model, from someone you trust.")


def _refuse_packed(path: Path) -> None:
    """The tensors are used as they lie in the file: neither compressed, nor in the other order of bytes."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise InputError("is a compressed archive; torch.save never writes one.", str(path), SAFE)
        orders = [name for name in archive.namelist() if name.endswith("/byteorder")]
        if any(archive.read(name) != b"little" for name in orders):
            raise InputError("was written on a big-endian machine, which is not read.", str(path), SAFE)
