"""A recipe as it is opened."""


def test_a_command_that_is_advised_is_about_this_very_recipe(bench, tmp_path):
    assert bench.open().command("chat") == "invoke chat small"
    changed = bench.open(sets=("train.epochs=2", "summary=Ada's assistant"))
    assert changed.overridden
    assert changed.command("ask") == "invoke ask small --set train.epochs=2 --set 'summary=Ada'\"'\"'s assistant'"


def test_a_recipe_from_elsewhere_is_named_by_its_path(bench, monkeypatch):
    monkeypatch.setenv("TUNE_RECIPES", str(bench.folder))
    assert bench.open().command("chat") == f"invoke chat {bench.recipes / 'small.yaml'}"
