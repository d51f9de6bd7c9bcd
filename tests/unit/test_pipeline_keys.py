"""Keys: what a result depends on, and what it does not."""

from dataclasses import replace

import pytest

from tunestation.models.native import registry
from tunestation.pipeline import stage as stages
from tunestation.pipeline.stage import Stage, differences, keys, tool_versions


def key(**changes) -> str:
    """The key of a small stage."""
    return keys([Stage(**({"name": "prepare", "function": "m:f", "params": {"a": 1, "text": "你好"}} | changes))])["prepare"]


def test_the_key_of_a_stage_is_the_sha256_of_its_canonical_json():
    # printf '%s' '{"needs":{},"params":{"a":1,"text":"你好"},"stage":"prepare","tools":{},"version":1}' | sha256sum
    assert key() == "b4df278e12bc4e18b9bf3b2a11cb2d87f6c65a943b85bfbc09299e1582e23b1f"


def test_the_order_of_parameters_and_the_name_of_the_function_are_in_no_key():
    assert key(params={"text": "你好", "a": 1}, function="elsewhere:g", exact=True, graceful=True, resumes=True) == key()


@pytest.mark.parametrize("change", [{"params": {"a": 2, "text": "你好"}}, {"params": {"a": 1}}, {"version": 2}, {"tools": ("filelock",)}])
def test_another_parameter_version_or_tool_makes_another_key(change):
    assert key(**change) != key()


def test_another_version_of_a_tool_makes_another_key_but_another_build_of_it_does_not(monkeypatch):
    found = []
    for version in ("2.13.0", "2.13.0+cpu", "2.13.1"):
        monkeypatch.setattr(stages, "version", lambda name, version=version: version)
        stages._version.cache_clear()
        found.append(key(tools=("torch",)))
    stages._version.cache_clear()
    assert found[0] == found[1] != found[2]


def test_a_tool_that_is_not_installed_is_absent():
    assert tool_versions(["no-such-package"]) == {"no-such-package": "absent"}


def test_another_key_upstream_makes_other_keys_downstream_and_nowhere_else():
    def line(value: int) -> dict[str, str]:
        return keys([Stage("a", "m:f", {"x": value}), Stage("b", "m:f", {}, ("a",)), Stage("c", "m:f", {}, ("b",)), Stage("d", "m:f", {})])

    before, after = line(1), line(2)
    assert [name for name in before if before[name] != after[name]] == ["a", "b", "c"]


def changed(bench, *sets: str) -> list[str]:
    """The stages of the small recipe whose keys `--set` changes."""
    before, after = keys(bench.open().stages), keys(bench.open(sets=sets).stages)
    return [name for name in before if before[name] != after[name]]


def test_runtime_title_and_summary_are_in_no_key(bench):
    sets = [
        "runtime.zero_stage=3",
        "runtime.micro_batch_size=4",
        "runtime.offload=optimizer",
        "chat.title=Other",
        "chat.system=Be kind.",
        "summary=Other",
    ]
    assert changed(bench, *sets) == []


def test_each_stage_depends_on_its_own_part_of_the_recipe(bench):
    assert changed(bench, "export.shard_size=1GB") == ["merge"]
    assert changed(bench, "export.checkpoint=best", "evaluate.fraction=0.1") == ["prepare", "train", "convert", "merge"]
    assert changed(bench, "train.epochs=2") == ["train", "convert", "merge"]
    assert changed(bench, "train.max_tokens=64") == ["prepare", "train", "convert", "merge"]


def test_dropout_makes_another_version_of_a_training_only_where_there_are_adapters_to_drop_for(bench):
    def version(*sets: str) -> int:
        return next(stage.version for stage in bench.open(sets=sets).stages if stage.name == "train")

    assert version("train.lora.dropout=0.1") > version("train.lora.dropout=0")
    assert version("train.lora.dropout=0.1", "train.method=full", "train.base.type=bf16") == version("train.lora.dropout=0")


def test_an_unset_learning_rate_is_the_same_as_the_usual_one_written_out(bench):
    assert changed(bench, "train.learning_rate=2e-4") == []


def test_the_bytes_of_data_files_are_in_the_key_of_prepare(bench):
    before = keys(bench.open().stages)
    (bench.recipes / "rows.jsonl").write_text("{}\n")
    after = keys(bench.open().stages)
    assert before["fetch"] == after["fetch"]
    assert before["prepare"] != after["prepare"]


def test_differences_name_each_leaf_with_its_old_and_new_value():
    before = {"a": 1, "b": {"c": "x", "d": [1]}, "gone": True}
    after = {"a": 1, "b": {"c": "y", "d": [1, 2]}, "new": "z" * 60}
    assert differences(before, after) == ['b.c: "x" -> "y"', "b.d: [1] -> [1,2]", "gone: true -> null", f'new: null -> "{"z" * 36}...']


@pytest.mark.parametrize(
    ("repo", "other"),
    [("Qwen/Qwen-7B-Chat", True), ("somebody/unknown", True), ("internlm/internlm2-chat-7b", False), ("Qwen/Qwen2.5-7B-Instruct", False)],
)
def test_a_new_version_of_a_familys_conversion_makes_other_keys_for_models_that_go_through_it(bench, monkeypatch, repo, other):
    from_hub = ("source: {kind: starter}", f"source: {{kind: hub, repo: {repo}, revision: main}}")
    before = keys(bench.open(from_hub).stages)
    monkeypatch.setattr(registry, "FAMILIES", tuple(replace(f, version=9) if f.name == "qwen" else f for f in registry.FAMILIES))
    after = keys(bench.open(from_hub).stages)
    assert (before["fetch"] != after["fetch"]) is other


def test_a_model_folder_is_fetched_again_when_the_conversion_of_its_family_has_a_new_version(bench, monkeypatch):
    folder = bench.folder / "home" / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "internlm2"}')
    local = ("source: {kind: starter}", "source: {kind: folder, path: mine}")
    before = keys(bench.open(local).stages)
    monkeypatch.setattr(registry, "FAMILIES", tuple(replace(f, version=9) for f in registry.FAMILIES))
    assert keys(bench.open(local).stages)["fetch"] != before["fetch"]
