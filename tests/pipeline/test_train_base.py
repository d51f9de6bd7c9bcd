"""What training does with each kind of base, and what it says of the step that it took."""

import pytest
from station import history, recipe, record

from tunestation.errors import InputError

QUIET = ("evaluate.every_steps=1000", "evaluate.prompts=[]")


@pytest.mark.parametrize("base", ["fp8", "bf16"])
def test_adapters_learn_over_an_8_bit_and_a_16_bit_base(station, trained, base):
    losses = list(history(station.make("train", *QUIET, f"train.base.type={base}"), "loss").values())
    assert losses[0] - losses[-1] > 0.3
    assert losses[0] == pytest.approx(history(trained, "loss")[1], rel=0.03)
    assert losses != list(history(trained, "loss").values())


def test_a_16_bit_base_of_qlora_is_that_of_lora(station):
    results = [station.make("train", *QUIET, *settings) for settings in (["train.base.type=bf16"], ["train.method=lora"])]
    assert history(results[0], "loss") == history(results[1], "loss")


def test_recomputing_activations_changes_no_loss(station, trained):
    station.write(recipe(name="again", runtime={"gradient_checkpointing": True}))
    result = station.make("train", name="again")
    assert history(result, "loss") == history(trained, "loss")
    assert record(result)["observed"]["step"] == "the fast step, 2 of 2 layers computed again"


def test_the_step_that_was_taken_is_told_at_the_end(station, trained):
    kept = "nothing computed again, products' inputs of 2 kept, weights of 2 layers kept in 16 bits"
    assert record(trained)["observed"]["step"] == f"the fast step, {kept}"
    full = station.make("train", "train.method=full", *QUIET)
    assert record(full)["observed"]["step"] == "transformers' own step, since all weights learn"


def test_8_bit_weights_cannot_be_sharded(station):
    station.write(recipe(name="sharded", train={"base": {"type": "fp8"}}, runtime={"zero_stage": 3}))
    with pytest.raises(InputError, match=r"sharded.yaml:\d+: train.base.type: 'fp8' needs runtime.zero_stage 0, 1 or 2"):
        station.make("train", name="sharded")
