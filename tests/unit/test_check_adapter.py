"""A recipe that begins with an adapter: what is wrong with that is told with its line before anything runs."""

import json

import pytest

from tunestation.app import check, plan_recipe
from tunestation.checking import check_data
from tunestation.errors import InputError
from tunestation.recipe import loading
from tunestation.work import open_recipe

NAMED = ("{kind: starter}", "{kind: starter}\n  adapter: adapters/coach")


@pytest.fixture
def adapter(bench):
    """A folder that looks like what peft wrote."""
    folder = bench.folder / "home" / "models" / "adapters" / "coach"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16}), encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def told(bench, *changes):
    """Problems of the small recipe that begins with the adapter."""
    bench.recipe(NAMED, *changes)
    with pytest.raises(InputError) as found:
        check_data(open_recipe("small", incomplete=True))
    return [str(problem).replace(f"{bench.recipes}/", "") for problem in found.value.problems]


def test_a_recipe_with_its_adapter_passes(bench, adapter, capsys):
    bench.recipe(NAMED)
    check("small")
    assert "no problems" in capsys.readouterr().out


def test_a_missing_adapter_is_told_with_the_places_where_it_was_looked_for(bench):
    (problem,) = told(bench)
    assert problem.startswith("small.yaml:6: there is no adapter 'adapters/coach'. It was looked for in ")
    assert "import-xtuner" in problem


def test_a_folder_without_weights_is_told(bench, adapter):
    (adapter / "adapter_model.safetensors").unlink()
    (problem,) = told(bench)
    assert problem.startswith("small.yaml:6: the adapter 'adapters/coach' has no adapter_model.safetensors.")


def test_another_rank_or_alpha_than_the_adapter_s_is_told_with_its_line(bench, adapter):
    assert told(bench, ("{rank: 8}", "{rank: 64, alpha: 32}")) == [
        "small.yaml:14: train.lora.rank is 64, but that of adapters/coach is 8. Set it to the same.",
        "small.yaml:14: train.lora.alpha is 32, but that of adapters/coach is 16. Set it to the same.",
    ]


def test_an_alpha_that_is_no_number_is_told(bench, adapter):
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": "x"}), encoding="utf-8")
    (problem,) = told(bench)
    assert problem == "small.yaml:14: train.lora.alpha is 16, but that of adapters/coach is x. Set it to the same."


@pytest.mark.parametrize(
    "changed",
    [{"target_modules": ".*(q_proj"}, {"exclude_modules": "*"}, {"alpha_pattern": {"[": 8}}, {"layers_pattern": ["layers", "?"]}],
)
def test_a_pattern_that_is_no_regular_expression_is_told_with_its_field(bench, adapter, changed):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed), encoding="utf-8")
    (problem,) = told(bench)
    assert problem.startswith(f"small.yaml:6: model.adapter cannot be used: in {path} {next(iter(changed))} '")
    assert "is no regular expression (" in problem and problem.endswith("Correct it there, or save the adapter again.")


@pytest.mark.parametrize("text", ['{"peft_type": "IA3", "r": 1, "lora_alpha": 1}', "[]", "not JSON"])
def test_what_is_no_lora_adapter_is_told(bench, adapter, text):
    (adapter / "adapter_config.json").write_text(text, encoding="utf-8")
    (problem,) = told(bench)
    assert problem.startswith("small.yaml:6: model.adapter is no LoRA adapter: ")


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ([("epochs: 1", "epochs: 0")], "small.yaml:12: train.epochs: 0 merges an adapter as it is. Name it as model.adapter."),
        ([NAMED, ("epochs: 1", "method: full")], "small.yaml:13: train.method: 'full' trains no adapter. Set it to 'qlora' or 'lora'."),
        (
            [NAMED, ("epochs: 1", "epochs: 0"), ("evaluate:", "export: {checkpoint: best}\nevaluate:\n  fraction: 0.1")],
            "small.yaml:15: export.checkpoint: 'best' needs train.epochs above 0.",
        ),
    ],
)
def test_what_contradicts_it_is_told(bench, changes, wanted):
    path = bench.recipe(*changes)
    with pytest.raises(InputError) as found:
        loading.load(path)
    assert [str(problem).replace(f"{path.parent}/", "") for problem in found.value.problems] == [wanted]


def test_without_epochs_there_is_nothing_to_plan(bench, adapter):
    bench.recipe(NAMED, ("epochs: 1", "epochs: 0"))
    with pytest.raises(InputError, match=r"nothing is trained: train\.epochs is 0\."):
        plan_recipe("small")
