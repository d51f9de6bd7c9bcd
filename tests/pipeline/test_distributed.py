"""Two training processes learn what one learns, and go on together after being killed."""

import pytest
import torch
from safetensors.torch import load
from station import history, recipe, record, sums, weights
from transformers import TrainerState

from tunestation.errors import InputError
from tunestation.pipeline.files import read_json
from tunestation.training.callbacks import Samples

NO_DROPOUT = {"lora": {"rank": 4, "alpha": 8, "dropout": 0}}


def pair(station, name, **changes):
    train = {**recipe()["train"], **NO_DROPOUT, **changes.pop("train", {})}
    station.write(recipe(name=name, train=train, evaluate={"every_steps": 4, "fraction": 0.2}, **changes))
    return name


@pytest.fixture(scope="module")
def alone(station):
    return station.make("train", name=pair(station, "alone"))


@pytest.fixture(scope="module")
def together(station):
    return station.make("train", name=pair(station, "together"), processes=2)


def alike(one, other):
    """Losses and held-out losses equal within what bfloat16 leaves open when sums are formed in another order."""
    assert list(history(other, "loss").values()) == pytest.approx(list(history(one, "loss").values()), rel=5e-3)
    assert list(history(other, "eval_loss").values()) == pytest.approx(list(history(one, "eval_loss").values()), rel=5e-3)
    mine, yours = load(weights(one)), load(weights(other))
    assert mine.keys() == yours.keys()
    a, b = (torch.cat([side[name].float().flatten() for name in sorted(mine)]) for side in (mine, yours))
    assert (a - b).norm() / a.norm() < 0.05


def test_two_processes_learn_what_one_learns(alone, together):
    assert record(alone)["observed"]["world_size"] == 1
    assert record(together)["observed"]["world_size"] == 2
    assert record(together)["facts"] == record(alone)["facts"]
    alike(alone, together)


def test_under_zero_3_weights_shared_by_two_processes_learn_the_same(station, alone):
    alike(alone, station.make("train", name=pair(station, "zero-3-together", runtime={"zero_stage": 3}), processes=2))


def test_two_killed_processes_go_on_to_equal_bytes(station, together):
    station.kill("checkpoint-4", name=pair(station, "killed-together"), processes=2)
    assert sums(station.make("train", name="killed-together", processes=2)) == sums(together)


def test_a_batch_that_two_processes_cannot_share_is_refused(station):
    name = pair(station, "uneven", train={"global_batch_size": 3})
    station.make("prepare", name=name)
    with pytest.raises(InputError, match=r"global_batch_size 3 cannot be shared by 2 process\(es\) with micro batches of 1"):
        station.make("train", name=name, processes=2)


def test_invoke_starts_as_many_processes_as_it_is_told(station, together):
    name = pair(station, "launched")
    station.make("prepare", name=name)
    station.invoke("train", name, TUNE_PROCESSES="2")
    assert sums(station.make("train", name=name)) == sums(together)


def test_a_process_that_comes_late_takes_nothing_away_of_what_the_first_has_written(tmp_path):
    file = tmp_path / "samples.json"
    for first in (True, False):
        Samples(lambda: ["hello"], 1, file).on_train_begin(None, TrainerState(is_world_process_zero=first), None)
    assert read_json(file) == {"0": ["hello"]}
