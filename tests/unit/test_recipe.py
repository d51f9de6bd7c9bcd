"""Reading recipes: what is wrong is told at once, each thing with its line, the nearest valid key and what to do."""

import pytest
from recipes_for_tests import SMALL

from tunestation import listing
from tunestation.errors import InputError
from tunestation.recipe import loading
from tunestation.recipe.problems import PATTERNS
from tunestation.recipe.schema import Recipe
from tunestation.settings import PROJECT


def problems(path, *sets) -> list[str]:
    """Every problem of the recipe at `path`, with the folder cut off."""
    with pytest.raises(InputError) as caught:
        loading.load(path, sets)
    return [str(problem).replace(f"{path.parent}/", "") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("summary:", "sumary: x\nsummary:", "small.yaml:3: sumary is not a field. Did you mean 'summary'?"),
        ("  epochs: 1", "  epoch: 1", "small.yaml:12: train.epoch is not a field. Did you mean 'epochs'?"),
        ("{rank: 8}", "{rnk: 8}", "small.yaml:13: train.lora.rnk is not a field. Did you mean 'rank'?"),
        ("      repeat: 2", "      repeats: 2", "small.yaml:9: data.sources[0].repeats is not a field. Did you mean 'repeat'?"),
        ("paths: [", "path: [a], paths: [", "small.yaml:8: data.sources[0].source.path is not a field. Did you mean 'paths'?"),
        ("{kind: starter}", "{kind: starter, repo: a/b}", "small.yaml:5: model.source.repo is not a field. Choose from: kind."),
        (
            "evaluate:",
            "evaluate:\n  checks: [{name: c, source: {kind: generator, name: n, sead: 1}}]",
            "small.yaml:15: evaluate.checks[0].source.sead is not a field. Did you mean 'seed'?",
        ),
        (
            "evaluate:",
            "chat: {generation: {temprature: 1}}\nevaluate:",
            "small.yaml:14: chat.generation.temprature is not a field. Did you mean 'temperature'?",
        ),
    ],
)
def test_an_unknown_key_is_named_at_every_level_with_the_nearest_valid_one(bench, old, new, told):
    assert problems(bench.recipe((old, new))) == [told]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("epochs: 1", "epochs: many", "small.yaml:12: train.epochs must be a number, not 'many'."),
        ("epochs: 1", "packing: 1", "small.yaml:12: train.packing must be true or false, not 1."),
        ("epochs: 1", "max_tokens: 12.5", "small.yaml:12: train.max_tokens must be a whole number, not 12.5."),
        ("epochs: 1", "method: qlorra", "small.yaml:12: train.method must be 'qlora', 'lora' or 'full', not 'qlorra'."),
        ("epochs: 1", "epochs: -1", "small.yaml:12: train.epochs must be greater than or equal to 0, not -1."),
        ("epochs: 1", "learning_rate: .inf", "small.yaml:12: train.learning_rate must be a finite number, not inf."),
        ("epochs: 1", "betas: [0.9]", "small.yaml:12: train.betas[1] is missing."),
        ("[rows.jsonl]", "rows.jsonl", "small.yaml:8: data.sources[0].source.paths must be a list, not 'rows.jsonl'."),
        ("{rank: 8}", "8", "small.yaml:13: train.lora must be a mapping of fields, not 8."),
        ("summary: A small recipe.", "summary:", "small.yaml:3: summary must be a text, not nothing."),
        ("summary: A small recipe.\n", "", "small.yaml:1: summary is missing. One line for `invoke recipes`."),
        ("kind: starter", "kind: starte", "small.yaml:5: model.source.kind 'starte' is not known. Did you mean 'starter'?"),
        ("{kind: starter}", "{repo: a/b}", "small.yaml:5: model.source.kind is missing. Choose one of: folder, hub, new, starter."),
        (
            "[rows.jsonl]",
            "[/etc/rows.jsonl]",
            "small.yaml:8: data.sources[0].source.paths[0] ('/etc/rows.jsonl') is not a path inside a volume. Give one "
            "relative to the volume or to the recipe, without '..'.",
        ),
        (
            "[rows.jsonl]",
            "[../rows.jsonl]",
            "small.yaml:8: data.sources[0].source.paths[0] ('../rows.jsonl') is not a path inside a volume. Give one "
            "relative to the volume or to the recipe, without '..'.",
        ),
        ("[rows.jsonl]", "[]", "small.yaml:8: data.sources[0].source.paths must be a list of 1 or more, not a list of 0."),
        ("{rank: 8}", "{target_modules: 5}", "small.yaml:13: train.lora.target_modules must be 'all-linear' or a list, not 5."),
        ("{rank: 8}", "{target_modules: [5]}", "small.yaml:13: train.lora.target_modules[0] must be a text, not 5."),
        (
            "evaluate:",
            "export: {shard_size: 2G}\nevaluate:",
            "small.yaml:14: export.shard_size must be a size as 2GB or 500MB, not '2G'.",
        ),
        ("epochs: 1", "epochs: 1e9", "small.yaml:12: train.epochs must be less than or equal to 1000, not 1000000000.0."),
        ("schema_version: 1", "schema_version: 2", "small.yaml:1: schema_version must be 1, not 2."),
    ],
)
def test_a_wrong_value_is_told_with_what_is_wanted_and_what_is_there(bench, old, new, told):
    assert problems(bench.recipe((old, new))) == [told]


def test_an_unknown_version_is_told_beside_other_problems(bench):
    told = problems(bench.recipe(("schema_version: 1", "schema_version: 2"), ("epochs: 1", "epochs: 1e9")))
    assert [problem.split(": ")[1].split()[0] for problem in told] == ["schema_version", "train.epochs"]


@pytest.mark.parametrize("value", ["[" * 60 + "]" * 60, "[" * 600 + "]" * 600, "1" + "0" * 5000])
def test_what_no_reader_can_take_is_told_and_not_a_traceback(bench, value):
    told = "nests too deeply, or holds a number with thousands of digits. No recipe needs that."
    assert problems(bench.recipe(("epochs: 1", f"epochs: {value}"))) == [f"small.yaml: {told}"]
    (said,) = problems(bench.recipe(), f"train.epochs={value}")
    assert said in (f"small.yaml: {told}", f"--set train.epochs: {told}")


def test_a_folder_that_is_called_like_a_recipe_is_none(bench):
    bench.recipe()
    (bench.recipes / "folder.yaml").mkdir()
    assert [path.name for path in loading.every(bench.recipes)] == ["small.yaml"]


NEW_MODEL = "{kind: new, hidden_size: 9, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 3}"


def test_values_that_contradict_each_other_are_told_at_once_each_with_its_line(bench):
    runtime = "runtime:\n  micro_batch_size: 5\n  offload: all\nexport: {checkpoint: best}\n"
    path = bench.recipe(("{kind: starter}", NEW_MODEL), ("template: chatml\n", ""), text=SMALL + runtime)
    assert problems(path) == [
        "small.yaml:1: template: a model of kind 'new' has no template of its own. Name one, as 'chatml'.",
        "small.yaml:5: model.source.num_attention_heads: does not divide hidden_size.",
        "small.yaml:5: model.source.num_key_value_heads: does not divide num_attention_heads.",
        "small.yaml:10: train.method: a model of kind 'new' has no weights to adapt. Set it to 'full'.",
        "small.yaml:16: runtime.micro_batch_size: 5 does not divide train.global_batch_size 16.",
        "small.yaml:17: runtime.offload: 'all' needs runtime.zero_stage 3; stages 1 and 2 can offload the 'optimizer' only.",
        "small.yaml:18: export.checkpoint: 'best' needs evaluate.fraction above 0.",
    ]


@pytest.mark.parametrize("train", ["method: lora", "base: {type: fp8}"])
def test_an_adapter_is_added_to_4_bit_weights_only_where_it_was_trained_on_them(bench, train):
    path = bench.recipe(("epochs: 1", f"epochs: 1\n  {train}"), text=SMALL + "export: {base: nf4}\n")
    assert [told.partition(" ")[2] for told in problems(path)] == ["export.base: 'nf4' needs train.method qlora and train.base.type nf4."]
    assert loading.load(bench.recipe(text=SMALL + "export: {base: nf4}\n")).recipe.export.base == "nf4"


def test_all_problems_of_a_file_are_told_at_once_in_the_order_of_its_lines(bench):
    path = bench.recipe(("summary:", "sumary:"), ("epochs: 1", "epochs: x"), ("rank: 8", "rnk: 8"), ("[Who are you?]", "[1]"))
    with pytest.raises(InputError) as caught:
        loading.load(path)
    lines = str(caught.value).replace(f"{path.parent}/", "").splitlines()
    assert [line.split(" ")[0] for line in lines[:-1]] == [f"small.yaml:{line}:" for line in (1, 3, 12, 13, 15)]
    assert lines[-1] == "5 problems; nothing was run."


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "small.yaml: is empty. A recipe has at least schema_version, name, summary, model and data."),
        ("# only a remark\n", "small.yaml: is empty. A recipe has at least schema_version, name, summary, model and data."),
        ("- a\n- b\n", "small.yaml: holds no mapping of keys. A recipe has at least schema_version, name, summary, model and data."),
        ("a: 1\nb:\n\tc: 2\n", "small.yaml:3: a tab stands where YAML needs spaces. Indent with spaces."),
        ("train:\n  epochs: 1\n  epochs: 2\n", "small.yaml:3: 'epochs' stands here a second time. Keep one of them."),
        ("a: {x: 1, x: 2}\n", "small.yaml:1: 'x' stands here a second time. Keep one of them."),
        ("a: [1, 2\nb: 3\n", "small.yaml:2: this is not YAML: expected ',' or ']', but got ':'."),
        ('a: "open\n', "small.yaml:2: this is not YAML: found unexpected end of stream."),
        ("a: *nobody\n", "small.yaml:1: this is not YAML: found undefined alias 'nobody'."),
        ("a: 1\n---\nb: 2\n", "small.yaml:2: this is not YAML: but found another document."),
        ("a: 1\x00\n", "small.yaml: is not YAML: unacceptable character #x0000"),
        ("just a text\n", "small.yaml: holds no mapping of keys."),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_told_with_its_line(bench, text, told):
    found = problems(bench.recipe(text=text))
    assert len(found) == 1
    assert found[0].startswith(told)


def test_a_file_that_is_not_utf8_is_told(bench):
    path = bench.recipe()
    path.write_bytes("summary: Grüße".encode("latin-1"))
    assert problems(path) == ["small.yaml: is not UTF-8 text (byte 11). Save it as UTF-8."]


def test_a_recipe_called_otherwise_than_its_file_is_told(bench):
    found = problems(bench.recipe(name="other"))
    assert found == [
        "other.yaml:2: name is 'small', but the file is called 'other.yaml'. Give both the same name: results lie in a folder of that name."
    ]


def test_a_missing_recipe_is_told_with_the_nearest_name(bench):
    bench.recipe()
    with pytest.raises(InputError, match=r"there is no recipe 'smal' in .* Did you mean 'small'?"):
        loading.find("smal", bench.recipes)
    with pytest.raises(InputError, match=r"there is no recipe 'nothing like it' in .* Run 'invoke recipes' for the list."):
        loading.find("nothing like it", bench.recipes)
    with pytest.raises(InputError, match=r"elsewhere/small.yaml: there is no such recipe file."):
        loading.find("elsewhere/small.yaml", bench.recipes)


def test_a_recipe_is_found_by_name_and_by_path(bench):
    path = bench.recipe()
    assert loading.find("small", bench.recipes) == loading.find(str(path), bench.recipes) == path


def test_set_puts_values_into_the_recipe_with_the_types_of_yaml(bench):
    sets = [
        "train.epochs=3",
        "train.learning_rate=2e-4",
        "data.sources.0.repeat=7",
        "evaluate.prompts=[a, b]",
        "chat.title='A: b'",
        "runtime.zero_stage=3",
    ]
    recipe = loading.load(bench.recipe(), sets).recipe
    assert (recipe.train.epochs, recipe.train.learning_rate, recipe.data.sources[0].repeat) == (3, 2e-4, 7)
    assert (recipe.evaluate.prompts, recipe.chat.title, recipe.runtime.zero_stage) == (("a", "b"), "A: b", 3)


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("train.epoch=3", "--set train.epoch=3: train.epoch is not a field. Did you mean 'epochs'?"),
        ("train.epochs=many", "--set train.epochs=many: train.epochs must be a number, not 'many'."),
        ("data.sources.0.repeat=0", "--set data.sources.0.repeat=0: data.sources[0].repeat must be greater than 0, not 0."),
        (
            "data.sources.3.repeat=1",
            "--set: 'data.sources.3.repeat=1' names a place that the recipe does not have ('3'). Name a field of the recipe.",
        ),
        (
            "data.sources.first.repeat=1",
            "--set: 'data.sources.first.repeat=1' names a place that the recipe does not have ('first'). Name a field of the recipe.",
        ),
        ("name.first=1", "--set: 'name.first' cannot be set to '1'. Name a field of the recipe."),
        ("summary=A: b", "--set summary=A: b: summary must be a text, not a mapping."),
        ("train.epochs", "--set: 'train.epochs' is not key=value. Write for example --set train.epochs=1."),
        ("=3", "--set: '=3' is not key=value. Write for example --set train.epochs=1."),
        (
            "train.epochs=[1",
            "--set: the value of train.epochs is not YAML: '[1'. See to its quotes and brackets, or put the whole of it in quotes.",
        ),
        ("data.sources[0].repeat=0", "--set data.sources[0].repeat=0: data.sources[0].repeat must be greater than 0, not 0."),
    ],
)
def test_a_wrong_assignment_is_told_by_its_own_words(bench, assignment, told):
    assert problems(bench.recipe(), assignment) == [told]


def test_the_resolved_recipe_names_every_default_and_reads_back_as_the_same_recipe(bench):
    recipe = loading.load(bench.recipe()).recipe
    text = loading.resolved(recipe)
    again = loading.load(bench.recipe(text=text)).recipe
    assert again.model_copy(update={"train": recipe.train}) == recipe
    assert again.train.learning_rate == 2e-4
    assert "warmup: 0.03" in text
    assert "zero_stage: 2" in text


@pytest.mark.parametrize("path", loading.every(PROJECT / "recipes"), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_points_editors_to_its_schema(path):
    assert loading.load(path).recipe.name == path.stem
    assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=recipe.schema.json\n")


def test_the_list_of_recipes_shows_each_with_what_it_is_made_of_and_names_unreadable_ones(bench):
    bench.recipe()
    bench.recipe(text="name: [", name="broken")
    text = listing.recipes("")
    assert next(line.split("  ") for line in text.splitlines() if "never been run" in line)[0] == "small"
    assert "broken  has problems: 'invoke check broken' tells them" in text
    assert "broken" not in listing.recipes("SMALL RECIPE")
    assert listing.recipes("mistral") == "No recipe mentions 'mistral'."


def test_a_damaged_lock_is_named_in_the_list_and_hides_no_other_recipe(bench):
    bench.recipe()
    bench.recipe(("name: small", "name: other"), name="other")
    (bench.recipes / "other.lock.json").write_text("{")
    assert [line.split("  ")[-1].strip() for line in listing.recipes("").splitlines()[2:]] == ["the lock is damaged", "never been run"]


def test_a_folder_of_recipes_that_is_not_there_is_told(bench, monkeypatch):
    monkeypatch.setenv("TUNE_RECIPES", str(bench.folder / "none"))
    with pytest.raises(InputError, match=r"TUNE_RECIPES: there is no folder .*none\. Set it to the folder of your recipes, or unset it\."):
        listing.recipes("")


def patterns(node):
    """All that a JSON schema asks of texts and of names of fields."""
    if isinstance(node, list):
        return set().union(*map(patterns, node))
    if not isinstance(node, dict):
        return set()
    own = {node["pattern"]} if isinstance(node.get("pattern"), str) else set()
    return own.union(node.get("patternProperties", {}), *map(patterns, node.values()))


def test_no_pattern_of_the_schema_is_shown_to_people():
    assert patterns(Recipe.model_json_schema()) == set(PATTERNS)
