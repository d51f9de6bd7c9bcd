"""runtime.deterministic: what a training says of the bytes that equal inputs would give again."""

from types import SimpleNamespace

import pytest
import torch
from test_fast_step import adapted

from tunestation.errors import InputError
from tunestation.pipeline.job import ALWAYS, NEVER
from tunestation.stages import train
from tunestation.training import checkpoints
from tunestation.training.fast import flash
from tunestation.training.fast.model import BITS, Fast
from tunestation.training.memory import Host

SETTINGS = {"max_tokens": 64, "method": "qlora", "base": {"type": "nf4"}}


@pytest.fixture
def on_a_gpu(monkeypatch):
    """As far as this process is asked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))


def test_a_cpu_promises_equal_bytes_whatever_was_asked():
    assert train._repeats("") == ALWAYS


def test_a_gpu_promises_them_for_gradients_in_one_order_and_names_what_made_them(on_a_gpu):
    fast = Fast.over(adapted("bfloat16"))
    assert train._repeats(fast.made_by) == fast.made_by == f"fast step {BITS}"
    assert train._repeats("") == NEVER


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(("micro", "many"), [(127, False), (128, True)])
def test_the_fast_step_is_told_and_tries_attention_as_it_will_go(asked, micro, many, monkeypatch):
    tried = []
    monkeypatch.setattr(flash, "known", lambda *given: tried.append(given[2:]))
    fast, why_not = train._fast(adapted("nf4"), SETTINGS, machine(asked, micro), config(), Host(), joins=False)
    assert why_not is None
    assert fast.in_order is asked
    assert tried == [((4, 2), 32, asked, many)]


def machine(asked: bool, micro: int = 1) -> dict:
    """Of `runtime`, what choosing a step asks for."""
    return {"gradient_checkpointing": False, "deterministic": asked, "micro_batch_size": micro}


def config() -> dict:
    """Of DeepSpeed."""
    return {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize("asked", [False, True])
def test_under_transformers_own_step_it_is_told_that_it_has_no_effect(asked, on_a_gpu, monkeypatch, capsys):
    monkeypatch.setattr(train, "obstacle", lambda *_: "it is unknown")
    monkeypatch.setattr(train, "packable", lambda *_: False)
    assert train._fast(SimpleNamespace(), SETTINGS, machine(asked), config(), Host(), joins=False) == (None, "it is unknown")
    assert ("runtime.deterministic has no effect" in capsys.readouterr().out) is asked


def test_a_gpu_without_flash_attention_is_refused_before_anything_is_loaded(on_a_gpu):
    with pytest.raises(InputError, match=r"runtime.deterministic needs FlashAttention, and that a GPU of .* 8.0 or more; this one has 7.5"):
        train._refuse_old_gpu(SETTINGS, machine(True))
    train._refuse_old_gpu(SETTINGS, machine(False))


@pytest.mark.parametrize("by", ["", "fast step 2"])
def test_a_checkpoint_says_what_summed_all_before_it_in_one_order(by, tmp_path):
    saving, folder = tmp_path / "saving", tmp_path / "folder"
    (saving / "checkpoint-4").mkdir(parents=True)
    folder.mkdir()
    checkpoints.seal(saving, folder, checkpoints.Stamp(4, 1, 1, 2, None, in_order=by))
    assert checkpoints.stamp_of(folder / "checkpoint-4").in_order == by
    assert ("in_order" in (folder / "checkpoint-4" / checkpoints.STAMP).read_text()) is bool(by)


@pytest.mark.parametrize(
    ("before", "after", "all_of_it"),
    [("step 2", "step 2", "step 2"), ("step 1", "step 2", ""), ("", "step 2", ""), ("step 2", "", ""), (True, "step 2", "")],
)
def test_going_on_by_another_step_gives_other_bytes(before, after, all_of_it):
    """Checkpoints that say true do not name what made them."""
    assert checkpoints.Stamp(4, 1, 1, 2, None, in_order=before).in_one_order(after) == all_of_it
