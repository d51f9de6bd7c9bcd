"""Weights are streamed: any order of dtypes, any number of shards, resumed after a kill, and no pickle runs."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tunestation.errors import InputError
from tunestation.models.shards import Planned, Shards, write_shards
from tunestation.pipeline.digest import file_digest
from tunestation.pipeline.files import read_json, write_json

WEIGHTS = {
    "a.weight": torch.arange(12, dtype=torch.bfloat16).reshape(3, 4),
    "b.weight": torch.arange(5, dtype=torch.float32) / 7,
    "c.weight": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "d.scale": torch.tensor(3.5),
}
ODD = {"x": torch.ones(3, dtype=torch.bfloat16), "y": torch.ones(1, dtype=torch.float64), "z": torch.ones(3, dtype=torch.int8)}


def planned(tensors):
    return [Planned(name, tensor.to("meta"), lambda tensor=tensor: tensor) for name, tensor in tensors.items()]


def same(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in wanted.items())


def test_one_file_holds_what_fits_and_safetensors_reads_it(tmp_path):
    digests = write_shards(planned(WEIGHTS), tmp_path, 10**6)
    assert digests == {"model.safetensors": file_digest(tmp_path / "model.safetensors")}
    same(load_file(tmp_path / "model.safetensors"), WEIGHTS)


def test_tensors_of_mixed_width_lie_aligned(tmp_path):
    write_shards(planned(ODD), tmp_path, 10**6)
    with (tmp_path / "model.safetensors").open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    assert length % 8 == 0
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    same(load_file(tmp_path / "model.safetensors"), ODD)


def test_shards_have_an_index_and_read_back_the_same(tmp_path):
    digests = write_shards(planned(WEIGHTS), tmp_path, 30)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert set(digests) == {*names, "model.safetensors.index.json"}
    assert read_json(tmp_path / "model.safetensors.index.json")["metadata"]["total_size"] == sum(t.nbytes for t in WEIGHTS.values())
    shards = Shards(tmp_path)
    same({name: shards.read(name).clone() for name in shards.names}, WEIGHTS)


def test_released_tensors_can_be_read_again_from_both_formats(tmp_path):
    (tmp_path / "safe").mkdir()
    (tmp_path / "bin").mkdir()
    save_file(WEIGHTS, tmp_path / "safe/model.safetensors")
    torch.save(WEIGHTS, tmp_path / "bin/pytorch_model.bin")
    for folder in ("safe", "bin"):
        shards = Shards(tmp_path / folder)
        for _ in range(2):
            same({name: shards.read(name).clone() for name in WEIGHTS}, WEIGHTS)
            shards.release()
        assert shards.meta("a.weight").is_meta and shards.meta("a.weight").shape == (3, 4)


def test_pickles_in_shards_are_found_by_their_index(tmp_path):
    halves = {"pytorch_model-00001-of-00002.bin": ("a.weight",), "pytorch_model-00002-of-00002.bin": ("b.weight", "c.weight")}
    for file, names in halves.items():
        torch.save({name: WEIGHTS[name] for name in names}, tmp_path / file)
    weight_map = {name: file for file, names in halves.items() for name in names}
    write_json(tmp_path / "pytorch_model.bin.index.json", {"weight_map": weight_map})
    assert Shards(tmp_path).names == ["a.weight", "b.weight", "c.weight"]


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_that_wants_more_than_tensors_is_refused_by_the_name_of_what_it_wants(tmp_path):
    evil = Evil()
    evil.mark = tmp_path / "ran"
    torch.save({"a": torch.zeros(2), "b": evil}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"wants more than tensors: posix\.system\. It was not read"):
        Shards(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("legacy", [True, False])
def test_what_torch_cannot_map_is_refused(tmp_path, legacy):
    path = tmp_path / "pytorch_model.bin"
    if legacy:
        torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(b"PK\x03\x04 and nothing else")
    with pytest.raises(InputError, match=r"before torch 1\.6"):
        Shards(tmp_path)


KILLED = """
import os, sys
from pathlib import Path
import torch
from tunestation.models.shards import Planned, write_shards
def load(n):
    if n == 4 and sys.argv[2] == "die":
        os._exit(9)
    return torch.full((100,), float(n))
tensors = [Planned(f"t{n}", torch.empty(100, device="meta"), lambda n=n: load(n)) for n in range(6)]
write_shards(tensors, Path(sys.argv[1]), 800)
"""


def test_a_killed_run_keeps_whole_shards_and_the_next_writes_the_rest(tmp_path):
    def run(how: str) -> int:
        code = [sys.executable, "-c", KILLED, str(tmp_path), how]
        return subprocess.run(code, env={"PYTHONPATH": os.pathsep.join(sys.path)}, check=False).returncode

    assert run("die") == 9
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2)]
    kept = (tmp_path / "model-00001-of-00003.safetensors").stat().st_mtime_ns
    assert run("live") == 0
    assert (tmp_path / "model-00001-of-00003.safetensors").stat().st_mtime_ns == kept
    shards = Shards(tmp_path)
    assert [shards.read(f"t{n}")[0].item() for n in range(6)] == [0, 1, 2, 3, 4, 5]
    assert not list(tmp_path.glob("*.part"))


def test_a_tensor_of_another_shape_than_planned_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="a: 8 bytes were made for"):
        write_shards([Planned("a", torch.empty(3, device="meta"), lambda: torch.zeros(2))], tmp_path, 100)
    assert not list(tmp_path.glob("*.safetensors"))
