"""What lies in files of weights is read as its writer meant it, or refused with the reason; never as other bytes."""

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunestation.errors import InputError
from tunestation.models.native.clean import clean
from tunestation.models.shards import Planned, Shards, moved, write_shards

NUMBERS = torch.arange(20, dtype=torch.float32)
VIEWS = {
    "slice": NUMBERS[3:9],
    "transposed": NUMBERS.view(4, 5).T,
    "every third": NUMBERS[::3],
    "columns": NUMBERS.view(4, 5)[:, 1:3],
    "repeated": torch.ones(1).expand(3, 4),
    "empty": torch.empty(0, 4),
    "scalar": torch.tensor(2.5),
    "byte": torch.tensor([7], dtype=torch.uint8),
    "truth": torch.tensor([True, False, True]),
    "long": torch.arange(3),
    "eight bit": torch.tensor([1.0, 2.0, 3.0]).to(torch.float8_e4m3fn),
}


def pickled(folder: Path, content: object) -> Path:
    torch.save(content, folder / "pytorch_model.bin")
    return folder


def packed_again(path: Path, how: int, byteorder: bytes) -> None:
    """The zip at `path` written anew, as other programs may do."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in content.items():
            archive.writestr(name, byteorder if name.endswith("/byteorder") else data)


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("max_bytes", [1, 50, 10**6])
def test_views_empty_ones_and_every_dtype_keep_their_numbers(tmp_path, suffix, copied, max_bytes):
    if suffix == "bin":
        pickled(tmp_path, VIEWS)
    else:
        save_file({name: tensor.contiguous() for name, tensor in VIEWS.items()}, tmp_path / "model.safetensors")
    shards, made = Shards(tmp_path), tmp_path / "made"
    made.mkdir()
    if copied:
        plan = [moved(name, shards.meta(name), lambda name=name: iter([shards.rows(name)])) for name in shards.names]
    else:
        plan = [Planned(name, shards.meta(name), lambda name=name: shards.read(name)) for name in shards.names]
    write_shards(plan, made, max_bytes, shards.release)
    found = {name: tensor for path in made.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert found.keys() == VIEWS.keys()
    for name, tensor in VIEWS.items():
        assert (found[name].dtype, found[name].shape, found[name].tolist()) == (tensor.dtype, tensor.shape, tensor.tolist()), name


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(2)], "holds no tensors by name at its top"),
        ({"model": {"a": torch.ones(2)}}, "holds no tensors by name at its top"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "holds a as torch.complex64"),
        ({"a": torch.eye(3).to_sparse()}, r"holds a as torch.float32 \(torch.sparse_coo\)"),
    ],
)
def test_a_pickle_of_something_else_than_named_dense_tensors_is_refused(tmp_path, content, words):
    with pytest.raises(InputError, match=words):
        Shards(pickled(tmp_path, content))


@pytest.mark.parametrize(
    ("how", "byteorder", "words"),
    [(zipfile.ZIP_DEFLATED, b"little", "is a compressed archive"), (zipfile.ZIP_STORED, b"big", "on a big-endian machine")],
)
def test_a_pickle_whose_bytes_are_not_the_numbers_is_refused(tmp_path, how, byteorder, words):
    packed_again(pickled(tmp_path, {"a": torch.ones(1000)}) / "pytorch_model.bin", how, byteorder)
    with pytest.raises(InputError, match=words):
        Shards(tmp_path)


@pytest.mark.parametrize(("left", "words"), [(0, "its header is cut"), (50, "its header is cut"), (-1, "the copy is incomplete")])
def test_cut_safetensors_are_refused_before_anything_is_read(tmp_path, left, words):
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:left])
    with pytest.raises(InputError, match=words):
        Shards(tmp_path)


def test_weights_that_are_links_as_in_a_hubs_cache_are_whole_files_afterwards(tmp_path):
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshots/commit"
    snapshot.mkdir(parents=True)
    save_file({"a": torch.ones(3)}, tmp_path / "blobs/1234")
    os.symlink("../../blobs/1234", snapshot / "model.safetensors")
    (snapshot / "config.json").write_text(json.dumps({"model_type": "llama", "auto_map": {}}))
    made = tmp_path / "elsewhere/made"
    clean(snapshot, made, 10**6)
    assert not (made / "model.safetensors").is_symlink()
    assert load_file(made / "model.safetensors")["a"].tolist() == [1, 1, 1]
