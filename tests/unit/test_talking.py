"""Which weights a task loads, and what it says when they are not there. No torch here."""

import json
from types import SimpleNamespace

import pytest
from recipes_for_tests import SMALL
from ruamel.yaml import YAML

from tunestation.errors import InputError
from tunestation.pipeline.volumes import Volumes
from tunestation.recipe.schema import Recipe
from tunestation.talking import _prompts, page, serve, weights


@pytest.fixture
def work(tmp_path):
    """A finished recipe on a model folder, as far as talking looks at it."""
    for stage in ("fetch", "prepare", "convert", "merge"):
        (tmp_path / stage).mkdir()
    model = {"ref": "models:tiny", "repo": None, "commit": None, "files": {}}
    (tmp_path / "fetch" / "manifest.json").write_text(json.dumps({"model": model, "data": []}), encoding="utf-8")
    (tmp_path / "convert" / "adapter_config.json").write_text("{}", encoding="utf-8")
    volumes = Volumes(tmp_path / "models", tmp_path, tmp_path, tmp_path)
    recipe = Recipe.model_validate_json(json.dumps(YAML(typ="safe").load(SMALL)))
    return SimpleNamespace(recipe=recipe, shelf=SimpleNamespace(volumes=volumes), folder=lambda stage: tmp_path / stage, root=tmp_path)


def test_the_merged_folder_is_loaded_with_its_own_tokenizer_and_checked_against_the_probes(work):
    found = weights(work, False, "merged")
    assert (found.model, found.adapter, found.tokenizer) == (str(work.root / "merge"), None, None)
    assert found.probe == str(work.root / "prepare" / "probe.json")


@pytest.mark.parametrize("load", ["16bit", "8bit", "nf4", "fp8"])
def test_base_and_adapter_are_loaded_with_the_recipe_s_template(work, load):
    found = weights(work, False, load)
    assert (found.model, found.adapter, found.precision) == (str(work.root / "models" / "tiny"), str(work.root / "convert"), load)
    assert found.tokenizer == str(work.root / "prepare" / "tokenizer")


def test_the_untuned_model_is_the_base_without_its_adapter(work):
    for load, precision in (("merged", "16bit"), ("nf4", "nf4")):
        found = weights(work, True, load)
        assert (found.model, found.adapter, found.precision) == (str(work.root / "models" / "tiny"), None, precision)


def test_what_cannot_be_loaded_is_said_with_the_next_step(work):
    with pytest.raises(InputError, match=r"--load: '4bit' is not known\. Choose from: merged, 16bit, 8bit, nf4, fp8\."):
        weights(work, False, "4bit")
    (work.root / "convert" / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"trained all weights: there is no adapter. Leave --load out"):
        weights(work, False, "nf4")
    (work.root / "fetch" / "manifest.json").write_text('{"model": null, "data": []}', encoding="utf-8")
    with pytest.raises(InputError, match=r"starts from new weights: there is no untuned model. Leave --base out"):
        weights(work, True, "merged")
    work.folder, work.command = lambda stage: None, lambda task: f"invoke {task} small"
    with pytest.raises(InputError, match=r"has no finished model with these settings yet. Run 'invoke reproduce"):
        weights(work, False, "merged")


def test_prompts_come_from_the_command_line_or_one_a_line_from_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffHi\n\n你是谁？\n", encoding="utf-8")
    assert _prompts("Hi") == ["Hi"]
    assert _prompts(f"@{file}") == ["Hi", "你是谁？"]


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe\x00"])
def test_a_file_without_prompts_is_refused_by_name(tmp_path, content):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"prompts.txt: .*Give a UTF-8 file with one prompt a line"):
        _prompts(f"@{file}")


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_a_port_that_does_not_exist_is_told_before_anything_is_loaded(work, port):
    for start in (lambda: serve(work, port, False, None, False), lambda: page(work, port, False, None, False, False)):
        with pytest.raises(InputError, match=f"--port: there is no port {port}. Give one from 1 to 65535."):
            start()
