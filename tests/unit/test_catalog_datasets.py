"""The catalogue of data sets, and recipes made from it."""

from types import SimpleNamespace

import pytest

from tunestation import app, listing
from tunestation.catalog.datasets import dataset, datasets
from tunestation.catalog.models import models
from tunestation.creating import METHODS, new
from tunestation.data.formats import FORMATS
from tunestation.data.formats.tables import TABLES
from tunestation.errors import InputError
from tunestation.recipe import loading

NOT_TRAINABLE = ("orpo_dpo_mix", "ultrafeedback")
XTUNER = [
    ("alpaca", "tatsu-lab/alpaca"),
    ("alpaca_zh", "silk-road/alpaca-data-gpt4-chinese"),
    ("oasst1", "timdettmers/openassistant-guanaco"),
    ("open_platypus", "garage-bAInd/Open-Platypus"),
    ("openorca", "Open-Orca/OpenOrca"),
    ("wizardlm", "WizardLM/WizardLM_evol_instruct_V2_196k"),
    ("code_alpaca", "HuggingFaceH4/CodeAlpaca_20K"),
    ("tiny_codes", "nampdn-ai/tiny-codes"),
    ("stack_exchange", "ArmelR/stack-exchange-instruction"),
    ("colorist", "burkelibbey/colors"),
    ("sql", "b-mc2/sql-create-context"),
    ("medical", "shibing624/medical"),
    ("msagent_react", "damo/MSAgent-Bench"),
    ("orpo_dpo_mix", "mlabonne/orpo-dpo-mix-40k"),
    ("ultrafeedback", "argilla/ultrafeedback-binarized-preferences-cleaned"),
]


@pytest.mark.parametrize(("name", "repo"), XTUNER)
def test_the_data_sets_of_xtuners_configurations_are_known_by_their_hub_id(name, repo):
    assert dataset(name).repo == repo


@pytest.mark.parametrize("name", datasets())
def test_every_data_set_says_where_it_is_and_reads_the_columns_it_names(name):
    known = dataset(name)
    assert bool(known.repo) != bool(known.paths) and bool(known.repo) == bool(known.files)
    assert known.repo or known.note, "who has to bring files must be told from where"
    needed = FORMATS[known.format.kind].columns(known.format)
    assert set(needed) <= set(known.columns)
    table = TABLES.get(known.format.kind)
    assert table is None or set(known.columns) <= {*table.question, table.answer, table.system_column}


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(InputError, match=r"there is no data set 'alpacca' in the catalogue. Did you mean 'alpaca'"):
        dataset("alpacca")


def test_data_sets_are_listed_and_searched(capsys):
    app.recipes(like="law-gpt", datasets=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:] if not line.startswith(" ")] == ["lawyer", "lawyer_reference"]
    assert listing.datasets("no such thing") == "No data set mentions 'no such thing'."


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [name for name in datasets() if name not in NOT_TRAINABLE])
def test_a_new_recipe_is_whole_and_valid_for_every_data_set_and_method(bench, name, method):
    recipe = loading.load(new(f"try-{method}", "internlm/internlm2-chat-7b", [name], method)).recipe
    part, known = recipe.data.sources[0], dataset(name)
    assert (part.format, part.read, recipe.train.method) == (known.format, known.read, method)
    assert getattr(part.source, "repo", None) == known.repo and getattr(part.source, "paths", ()) == known.paths


def test_a_new_recipe_passes_the_check_and_several_data_sets_are_mixed(bench, capsys):
    app.new("mine", "starter", ["rows.jsonl", "rows.jsonl"], "qlora")
    app.check("mine")
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("wrote ") and out[-1].endswith("mine.yaml: no problems.")
    assert len(loading.load(bench.recipes / "mine.yaml").recipe.data.sources) == 2


def test_a_file_is_named_as_the_recipe_sees_it_wherever_it_was_typed(bench, monkeypatch):
    monkeypatch.chdir(bench.folder)
    typed = str((bench.recipes / "rows.jsonl").relative_to(bench.folder))
    for name, data in (("relative", typed), ("absolute", str(bench.recipes / "rows.jsonl")), ("beside", "rows.jsonl")):
        assert loading.load(new(name, "starter", [data], "qlora")).recipe.data.sources[0].source.paths == ("rows.jsonl",)


def test_a_text_file_is_for_pretraining(bench):
    (bench.recipes / "book.txt.gz").touch()
    recipe = loading.load(new("mine", "starter", ["book.txt.gz"], "full")).recipe
    assert (recipe.train.objective, recipe.data.sources[0].format.kind) == ("pretrain", "text")


def test_a_folder_below_the_model_volume_is_a_model(bench):
    (bench.folder / "home" / "models" / "mine").mkdir(parents=True)
    assert loading.load(new("one", "mine", ["alpaca"], "lora")).recipe.model.source.kind == "folder"


@pytest.mark.parametrize("file", ["it's mine.jsonl", "007.csv", "- x.json", "# y.jsonl", "a: b.txt"])
def test_a_file_may_have_any_name(bench, file):
    (bench.recipes / file).touch()
    path = new("mine", "starter", [file], "qlora")
    assert loading.load(path).recipe.data.sources[0].source.paths == (file,)


MODELS = [
    ("internlm/internlm2-chat-7b", "internlm/internlm2-chat-7b", "huggingface", "internlm2_chat"),
    ("InternLM2-Chat-7B", "internlm/internlm2-chat-7b", "huggingface", "internlm2_chat"),
    ("qwen/Qwen-7B-Chat", "qwen/Qwen-7B-Chat", "modelscope", "qwen_chat"),
    ("Qwen-7B", "Qwen/Qwen-7B", "huggingface", "chatml"),
    ("somebody/else", "somebody/else", "huggingface", "auto"),
]


@pytest.mark.parametrize(("named", "repo", "hub", "template"), MODELS)
def test_a_model_of_the_catalogue_comes_with_its_template_however_it_is_named(bench, named, repo, hub, template):
    recipe = loading.load(new("mine", named, ["alpaca"], "qlora")).recipe
    assert (recipe.model.source.repo, recipe.model.source.hub, recipe.template) == (repo, hub, template)


def test_every_name_of_the_model_catalogue_makes_a_recipe_or_says_why_not(bench):
    for number, (repo, model) in enumerate(models().items()):
        if model.shape.standing == "not possible":
            with pytest.raises(InputError, match="cannot be trained"):
                new(f"m{number}", repo, ["alpaca"], "lora")
        else:
            recipe = loading.load(new(f"m{number}", repo, ["alpaca"], "lora")).recipe
            assert (recipe.model.source.repo, recipe.template) == (repo, model.template or "chatml")


REFUSED = [
    ({"method": "dpo"}, "there is no method 'dpo'. Choose from: qlora, lora, full."),
    ({"model": ""}, "a recipe needs a model and data."),
    ({"data": []}, "a recipe needs a model and data."),
    ({"model": "gpt"}, "there is no model 'gpt'. Name 'starter', one of 'invoke recipes --models'"),
    ({"model": "starterr"}, "there is no model 'starterr'. Did you mean 'starter'?"),
    ({"model": "internlm2-chat-7bb"}, "there is no model 'internlm2-chat-7bb'. Did you mean 'internlm/internlm2-chat-7b'?"),
    ({"model": "deepseek-ai/deepseek-moe-16b-chat"}, "cannot be trained: DeepSeek-MoE of the first generation is not carried"),
    ({"model": "mistralai/Mixtral-8x7B-v0.1"}, "--method: the method is 'qlora', but the model is a mixture of experts: most of its"),
    ({"data": ["missing.csv"]}, "there is no file 'missing.csv' where recipes look for data. Put it into"),
    ({"data": ["alpacca"]}, "there is no data set 'alpacca' in the catalogue. Did you mean 'alpaca'?"),
    ({"data": ["ultrafeedback"]}, "'ultrafeedback' holds preference pairs; training on pairs comes later."),
    ({"data": ["book.txt", "alpaca"]}, "documents and conversations cannot be mixed in one recipe."),
    ({"data": ["../x.jsonl"]}, "is not a path inside a volume"),
    ({"name": "../evil"}, "'../evil' is no name for a recipe."),
    ({"name": "small"}, "this recipe exists already."),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_what_cannot_be_made_is_told_and_nothing_is_written(bench, change, words):
    bench.recipe()
    (bench.recipes / "book.txt").touch()
    asked = SimpleNamespace(**({"name": "mine", "model": "starter", "data": ["alpaca"], "method": "qlora"} | change))
    with pytest.raises(InputError) as caught:
        new(asked.name, asked.model, asked.data, asked.method)
    assert words in str(caught.value)
    assert sorted(path.name for path in bench.recipes.glob("**/*.yaml")) == ["small.yaml"]
