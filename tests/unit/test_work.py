"""A recipe as it is opened."""

import pytest

from tunestation.errors import InputError
from tunestation.work import pin


def test_a_command_that_is_advised_is_about_this_very_recipe(bench):
    assert bench.open().command("chat") == "invoke chat small"
    changed = bench.open(sets=("train.epochs=2", "summary=Ada's assistant"))
    assert changed.overridden
    assert changed.command("ask") == "invoke ask small --set train.epochs=2 --set 'summary=Ada'\"'\"'s assistant'"


def test_a_recipe_from_elsewhere_is_named_by_its_path(bench, monkeypatch):
    monkeypatch.setenv("TUNE_RECIPES", str(bench.folder))
    assert bench.open().command("chat") == f"invoke chat {bench.recipes / 'small.yaml'}"


@pytest.mark.parametrize(
    ("again", "remedy"), [(True, "Asking wants a network: unset TUNE_OFFLINE."), (False, "Run 'invoke pin small' once with a network.")]
)
def test_what_only_the_network_knows_is_told_offline_with_the_next_step(bench, monkeypatch, again, remedy):
    monkeypatch.setenv("TUNE_OFFLINE", "1")
    work = bench.open(("{kind: starter}", "{kind: hub, repo: owner/model, revision: main}"))
    with pytest.raises(InputError) as caught:
        pin(work, again)
    assert caught.value.problems[0].remedy == remedy
