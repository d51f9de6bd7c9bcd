"""What a child process finds in its environment."""

from tunestation.settings import child_environment

NAME = "PYTORCH_CUDA_ALLOC_CONF"


def test_memory_of_a_gpu_is_taken_in_segments_that_grow(monkeypatch):
    monkeypatch.delenv(NAME, raising=False)
    assert child_environment({})[NAME] == "expandable_segments:True"


def test_a_setting_of_the_users_own_stays(monkeypatch):
    monkeypatch.setenv(NAME, "max_split_size_mb:128")
    assert child_environment({})[NAME] == "max_split_size_mb:128"
