"""The rehearsal before the first step: what it tries, what it says, and that it leaves no trace."""

import shutil

import pytest
import torch
from test_fast_step import adapted, documents

from tunestation.errors import TunestationError
from tunestation.training.batches import lay
from tunestation.training.fast.model import Fast
from tunestation.training.learned import learned
from tunestation.training.rehearsal import Rehearsal, advised


@pytest.fixture
def rehearsal(tmp_path):
    """Over a small model with dropout, whose longest micro-batch has 60 tokens."""
    model, rows = adapted(dropout=0.1).train(), documents()
    return Rehearsal(model, Fast.over(model), lay, rows[2:], rows[1], None, tmp_path, 4, 1000, "bf16", learned("adamw", 2))


def test_it_leaves_weights_gradients_random_numbers_and_files_as_they_were(rehearsal, tmp_path):
    torch.manual_seed(3)
    before, weights = torch.get_rng_state(), {name: weight.clone() for name, weight in rehearsal.model.named_parameters()}
    rehearsal.run(torch.device("cpu"), rehearsal.states)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(weight, weights[name]) and weight.grad is None for name, weight in rehearsal.model.named_parameters())
    assert rehearsal.model.training
    assert list(tmp_path.iterdir()) == []


def test_it_tries_the_longest_micro_batch_an_evaluation_and_a_save(rehearsal, monkeypatch):
    seen = []
    forward, save = rehearsal.fast.forward, rehearsal.model.save_pretrained
    monkeypatch.setattr(rehearsal.fast, "forward", lambda **batch: seen.append(batch["input_ids"].numel()) or forward(**batch))
    monkeypatch.setattr(rehearsal.model, "save_pretrained", lambda folder, **options: seen.append("saved") or save(folder, **options))
    rehearsal.run(torch.device("cpu"), rehearsal.states)
    assert seen == [60, 19, "saved"]


def test_a_micro_batch_that_does_not_fit_is_told_with_a_remedy(rehearsal, monkeypatch):
    def full(**_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rehearsal.fast, "forward", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 24_000_000_000))
    arguments = type("Arguments", (), {"device": torch.device("cpu")})
    beginning = type("State", (), {"global_step": 0})
    with pytest.raises(TunestationError, match=r"60 tokens does not fit into this GPU's 24 GB. Lower runtime.micro_batch_size") as caught:
        rehearsal.on_train_begin(arguments, beginning, None)
    assert caught.value.exit_code == 1


def test_too_small_a_disk_is_told(rehearsal, monkeypatch):
    usage = shutil.disk_usage(rehearsal.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(TunestationError, match=r"4 checkpoints need 0.0 GB, and 0.0 GB are free") as caught:
        rehearsal.check_disk()
    assert "lower train.keep" in str(caught.value)


def test_running_out_of_memory_later_is_told_in_the_same_words(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 24_000_000_000))
    with pytest.raises(TunestationError, match=r"4,096 tokens does not fit into this GPU's 24 GB"), advised(4096):
        raise torch.OutOfMemoryError("CUDA out of memory")
