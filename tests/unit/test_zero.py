"""The DeepSpeed configuration: made from the recipe, or the user's own where it does not contradict the recipe."""

import json

import pytest

from tunestation.errors import InputError
from tunestation.training import zero

MADE = zero.make(2, "none", 1, 4, 1.0)


def merged(tmp_path, users: object, made: dict = MADE) -> dict:
    """The user's configuration over `made`."""
    path = tmp_path / "ds.json"
    path.write_text(users if isinstance(users, str) else json.dumps(users))
    return zero.merge_users(path, made)


def refusals(tmp_path, users: object) -> list[str]:
    with pytest.raises(InputError) as caught:
        merged(tmp_path, users)
    assert {problem.where for problem in caught.value.problems} == {str(tmp_path / "ds.json")}
    return [problem.what for problem in caught.value.problems]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_configuration_carries_the_numbers_of_the_recipe(stage):
    made = zero.make(stage, "none", 2, 8, 0.5)
    assert (made["train_micro_batch_size_per_gpu"], made["gradient_accumulation_steps"], made["gradient_clipping"]) == (2, 8, 0.5)
    assert made["zero_optimization"]["stage"] == stage
    assert made["bf16"]["enabled"] is True
    assert ("stage3_gather_16bit_weights_on_model_save" in made["zero_optimization"]) == (stage == 3)


@pytest.mark.parametrize(
    ("offload", "moved"), [("none", set()), ("optimizer", {"offload_optimizer"}), ("all", {"offload_optimizer", "offload_param"})]
)
def test_offloading_moves_what_the_recipe_says_to_host_memory(offload, moved):
    found = {name: value for name, value in zero.make(3, offload, 1, 1, 1.0)["zero_optimization"].items() if name.startswith("offload")}
    assert set(found) == moved
    assert all(value["device"] == "cpu" for value in found.values())


@pytest.mark.parametrize(("trainable", "size"), [(0, 1), (1000, 1000), (10**10, 200_000_000)])
def test_buckets_have_the_size_of_the_trainable_weights_up_to_a_limit(trainable, size):
    made = zero.make(2, "none", 1, 1, 1.0)
    zero.set_buckets(made, trainable)
    assert (made["zero_optimization"]["reduce_bucket_size"], made["zero_optimization"]["allgather_bucket_size"]) == (size, size)


def test_buckets_that_the_user_sized_keep_their_size_unless_it_is_auto(tmp_path):
    config = merged(tmp_path, {"zero_optimization": {"reduce_bucket_size": 77, "allgather_bucket_size": "auto"}})
    zero.set_buckets(config, 1000)
    assert (config["zero_optimization"]["reduce_bucket_size"], config["zero_optimization"]["allgather_bucket_size"]) == (77, 1000)


@pytest.mark.parametrize(("batch", "micro", "world", "steps"), [(16, 1, 1, 16), (16, 2, 4, 2), (8, 8, 1, 1)])
def test_a_step_is_shared_by_micro_batches_and_processes(batch, micro, world, steps):
    assert zero.accumulation_steps(batch, micro, world) == steps


def test_a_step_that_cannot_be_shared_evenly_is_refused():
    with pytest.raises(
        InputError, match=r"global_batch_size 4 cannot be shared by 3 process\(es\) with micro batches of 1. .*TUNE_PROCESSES"
    ):
        zero.accumulation_steps(4, 1, 3)


def test_an_empty_configuration_is_the_one_of_the_recipe(tmp_path):
    assert merged(tmp_path, {}) == MADE


def test_values_that_are_auto_or_absent_come_from_the_recipe_and_others_are_kept(tmp_path):
    users = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": 4,
        "zero_optimization": {"stage": "auto", "overlap_comm": True},
    }
    found = merged(tmp_path, users | {"train_batch_size": "auto", "wall_clock_breakdown": True})
    assert found == MADE | {"zero_optimization": MADE["zero_optimization"] | {"overlap_comm": True}, "wall_clock_breakdown": True}


def test_xtuners_own_configurations_are_accepted(tmp_path):
    auto = ("gradient_accumulation_steps", "train_micro_batch_size_per_gpu", "gradient_clipping")
    users = dict.fromkeys(auto, "auto") | {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    users |= {"zero_optimization": {"stage": 2, "overlap_comm": True}, "bf16": {"enabled": "auto"}}
    assert merged(tmp_path, users | {"fp16": {"enabled": "auto", "initial_scale_power": 16}}) == merged(tmp_path, users)
    assert merged(tmp_path, users)["bf16"] == MADE["bf16"]


@pytest.mark.parametrize(
    ("users", "told"),
    [
        ({"optimizer": {"type": "AdamW"}}, "'optimizer' is set, but the recipe decides it (section train)."),
        ({"scheduler": {"type": "WarmupLR"}}, "'scheduler' is set, but the recipe decides it (section train)."),
        ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu is 8, but the recipe makes it 1."),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps is 2, but the recipe makes it 4."),
        ({"gradient_clipping": 0.3}, "gradient_clipping is 0.3, but the recipe makes it 1.0."),
        ({"train_batch_size": 4}, "train_batch_size is set, but the recipe decides it (train.global_batch_size)."),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage is 3, but runtime.zero_stage is 2."),
        ({"bf16": {"enabled": False}}, "bf16 is switched off, but Tunestation trains in bfloat16."),
        ({"fp16": {"enabled": True}}, "fp16 is switched on, but Tunestation trains in bfloat16."),
        ({"zero_optimization": 2}, "zero_optimization is 2, not an object."),
        ({"bf16": True}, "bf16 is True, not an object."),
        ([], "the configuration is not a JSON object."),
    ],
)
def test_each_contradiction_is_told(tmp_path, users, told):
    assert refusals(tmp_path, users) == [told]


def test_all_contradictions_are_told_at_once(tmp_path):
    assert len(refusals(tmp_path, {"optimizer": {}, "gradient_clipping": 0, "zero_optimization": {"stage": 1}})) == 3


def test_a_configuration_that_is_missing_or_no_json_is_told(tmp_path):
    (told,) = refusals(tmp_path, "{'stage': 2}")
    assert told.startswith("this DeepSpeed configuration cannot be read: ")
    with pytest.raises(InputError, match=r"none.json: there is no such DeepSpeed configuration. It is looked for beside the recipe."):
        zero.merge_users(tmp_path / "none.json", MADE)
