"""Gradients are clipped as DeepSpeed clips them, though the host does not look at their norm."""

from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.utils import mask_nan_or_inf_with_val_inplace
from deepspeed.runtime.zero import stage_1_and_2
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from station import recipe, record, sums

from tunestation.training import clipping

VALUES = [0.0, 0.3, 1.0, 7.5, 1e30, -1.0, float("inf"), float("-inf"), float("nan")]


def clipped(clip, largest, scale, norm):
    """What `clip` makes of gradients, one of them by itself and two in a list."""
    torch.manual_seed(0)
    gradients = [torch.randn(5), [torch.randn(3), torch.randn(4).bfloat16()]]
    clip(SimpleNamespace(clip_grad=largest, loss_scale=scale, device="cpu"), gradients, norm)
    return [gradients[0], *gradients[1]]


@pytest.mark.parametrize("largest", [0.0, 0.5, 1.0, 1000.0])
@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("value", VALUES)
def test_what_is_clipped_is_deepspeeds_to_the_bit(value, scale, largest):
    wanted = clipped(DeepSpeedZeroOptimizer.unscale_and_clip_grads, largest, scale, torch.tensor(value))
    for norm in (torch.tensor(value), value):
        found = clipped(clipping.unscale_and_clip, largest, scale, norm)
        assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))


@pytest.mark.parametrize("value", VALUES)
def test_a_norm_that_is_no_number_is_marked_as_deepspeed_marks_it(value):
    wanted, found = torch.tensor(value), torch.tensor(value)
    mask_nan_or_inf_with_val_inplace(wanted, device="cpu")
    clipping.mask_invalid(found, device="cpu")
    assert torch.equal(wanted, found)


def test_deepspeed_still_calls_what_is_replaced(monkeypatch):
    monkeypatch.setattr(stage_1_and_2, "mask_nan_or_inf_with_val_inplace", mask_nan_or_inf_with_val_inplace)
    called = DeepSpeedZeroOptimizer.get_grad_norm_direct.__code__.co_names, DeepSpeedZeroOptimizer.step.__code__.co_names
    assert "mask_nan_or_inf_with_val_inplace" in called[0] and "unscale_and_clip_grads" in called[1]
    optimizer = SimpleNamespace(clip_grad=1.0, loss_scale=1.0)
    clipping.without_waiting(optimizer)
    gradient = torch.full((4,), 2.0)
    optimizer.unscale_and_clip_grads([gradient], torch.tensor(4.0))
    assert gradient.norm() == pytest.approx(1.0, rel=1e-5)
    assert stage_1_and_2.mask_nan_or_inf_with_val_inplace is clipping.mask_invalid


@pytest.mark.parametrize("stage", [1, 2])
def test_training_clips_so_and_ends_with_the_same_bytes(station, train_as, stage):
    made = {}
    for function in ("deepspeeds", "run"):
        train_as(f"clipped:{function}")
        station.write(recipe(name=f"clips-{stage}", runtime={"zero_stage": stage}, train={**recipe()["train"], "max_grad_norm": 0.05}))
        found = station.make("train", name=f"clips-{stage}", force=True)
        made[function] = {name: digest for name, digest in sums(found).items() if name.startswith("checkpoints")}
    assert made["run"] == made["deepspeeds"] and made["run"]
    assert record(found)["observed"]["clipped"] == record(found)["facts"]["steps"]


@pytest.mark.parametrize("asked", [False, True])
def test_deepspeeds_clock_waits_for_the_gpu_only_if_the_user_wants_it_to(station, train_as, asked):
    train_as("clipped:run")
    runtime = {"zero_stage": 2}
    if asked:
        (station.recipes / "clock.json").write_text('{"timers": {"throughput": {"enabled": true}}}')
        runtime["deepspeed_config"] = "clock.json"
    station.write(recipe(name="clock", runtime=runtime))
    found = record(station.make("train", name="clock", force=True))
    assert (found["observed"]["waited"] >= found["facts"]["steps"]) is asked
    assert asked or not found["observed"]["waited"]
