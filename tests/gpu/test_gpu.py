"""What only a GPU can show: bitsandbytes' kernels and optimizers, and that training on it resumes."""

import signal

import pytest
import torch
from safetensors.torch import load
from station import history, interrupt, recipe, record, weights, worker_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
SHORT = ("evaluate.every_steps=4", "train.save_steps=4")


@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_32bit", "adamw_8bit"])
@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_every_method_learns_with_every_optimizer(station, method, optimizer):
    trained = station.make("train", *SHORT, f"train.method={method}", f"train.optimizer={optimizer}")
    losses = list(history(trained, "loss").values())
    assert losses[-1] < losses[0] - 0.3
    assert record(trained)["observed"]["peak_memory_gb"] > 0
    assert record(trained)["machine"]["gpus"]


@pytest.mark.parametrize(
    ("method", "stage", "offload"),
    [("qlora", 0, "none"), ("qlora", 1, "optimizer"), ("qlora", 2, "optimizer"), ("qlora", 3, "none"), ("full", 3, "all")],
)
def test_every_stage_of_zero_learns_wherever_weights_and_states_are(station, method, stage, offload):
    runtime = (f"runtime.zero_stage={stage}", f"runtime.offload={offload}")
    losses = list(history(station.make("train", *SHORT, f"train.method={method}", *runtime), "loss").values())
    assert losses[-1] < losses[0] - 0.3


def test_the_optimizers_of_bitsandbytes_learn_nearly_what_torchs_learns(station):
    losses = {
        name: list(history(station.make("train", *SHORT, f"train.optimizer={name}"), "loss").values())
        for name in ("adamw", "paged_adamw_32bit", "adamw_8bit")
    }
    assert losses["paged_adamw_32bit"] == pytest.approx(losses["adamw"], rel=0.02)
    assert losses["adamw_8bit"] == pytest.approx(losses["adamw"], rel=0.05)


def test_evaluations_in_between_do_not_change_what_is_learned(station):
    often = station.make("train", *SHORT)
    seldom = station.make("train", "evaluate.every_steps=1000", "evaluate.prompts=[]", "train.save_steps=4")
    assert alike(often, seldom)


@pytest.mark.parametrize("in_order", [False, True])
def test_killed_on_a_gpu_it_goes_on_to_the_same_adapter(station, in_order):
    """In one order to the same bytes."""
    names = [f"{kind}-{str(in_order).lower()}" for kind in ("undisturbed", "disturbed")]
    for name in names:
        runtime = {**recipe().get("runtime", {}), "deterministic": in_order}
        station.write(recipe(name=name, train={**recipe()["train"], "epochs": 4}, runtime=runtime))
        station.make("prepare", name=name)
    undisturbed = station.make("train", name=names[0])
    code, said = interrupt(station, names[1], 4, lambda running: worker_of(running).kill())
    assert code == 1, said
    resumed = station.make("train", name=names[1])
    assert (record(resumed)["repeats"] != "never") is in_order
    assert weights(undisturbed) == weights(resumed) if in_order else alike(undisturbed, resumed)


def test_stopped_on_a_gpu_it_keeps_a_complete_checkpoint(station):
    station.write(recipe(name="stopped", train={**recipe()["train"], "epochs": 20}))
    station.make("prepare", name="stopped")
    code, said = interrupt(station, "stopped", 4, lambda running: running.send_signal(signal.SIGTERM))
    assert code == 1
    assert "a complete checkpoint is kept. The same command goes on from there." in said


def alike(one, other):
    """Equal bytes, or equal within what atomic sums on a GPU leave open."""
    mine, yours = load(weights(one)), load(weights(other))
    assert mine.keys() == yours.keys()
    return all(torch.allclose(mine[name].float(), yours[name].float(), rtol=0.02, atol=1e-3) for name in mine)


def test_the_merged_model_answers_on_a_gpu(station):
    station.make("merge", *SHORT)
    words = [word for assignment in SHORT for word in ("--set", assignment)]
    answers = [station.invoke("ask", "tiny", "What is 1 and 1?", *words) for _ in range(2)]
    assert answers[0].strip()
    assert answers[0] == answers[1]
