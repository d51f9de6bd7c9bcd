"""The generated pages."""

import json

import pytest

from tunestation.recipe import loading
from tunestation.recipe.schema import Recipe
from tunestation.reference import INTRO, pages, recipe_page, schema_json
from tunestation.settings import PROJECT


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_the_committed_pages_are_current(path):
    assert path.read_text(encoding="utf-8") == pages()[path], "run 'invoke docs'"


def test_every_field_of_every_part_is_on_the_page_once_with_what_it_does():
    schema, page = Recipe.model_json_schema(), recipe_page()
    assert page.count("## ") == 1 + len(schema["$defs"])
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == sum(len(part["properties"]) for part in (schema, *schema["$defs"].values()))
    assert [row for row in rows if row.rstrip("| ").count("|") < 4] == []


def test_every_link_of_the_page_leads_to_a_heading_of_it():
    page = recipe_page()
    headings = {
        line[3:].lower().translate({ord(char): None for char in ".,[]"}).replace(" ", "-")
        for line in page.splitlines()
        if line.startswith("## ")
    }
    links = {part.split(")")[0] for part in page.split("](#")[1:]}
    assert links
    assert links <= headings


def test_types_are_written_for_people():
    rows = {line.split("|")[1].strip(): line for line in recipe_page().splitlines() if line.startswith("| ")}
    assert "| whole number from 0 to 3 | `2` |" in rows["`zero_stage`"]
    assert "| one of `qlora`, `lora`, `full` | `qlora` |" in rows["`method`"]
    assert "| number above 0 | *unset* |" in rows["`learning_rate`"]
    assert "| list of [data.sources[]](#datasources), at least one | **required** |" in rows["`sources`"]
    assert "| `all-linear` or list of texts | `all-linear` |" in rows["`target_modules`"]
    assert not [row for row in rows.values() if "anyOf" in row or "$" in row or "string" in row]


def test_the_schema_is_strict_at_every_level_and_keeps_the_order_of_fields():
    schema = json.loads(schema_json())
    assert list(schema["properties"]) == list(Recipe.model_fields)
    assert {part["additionalProperties"] for part in (schema, *schema["$defs"].values())} == {False}
    assert schema_json().endswith("}\n")


def test_the_recipe_shown_in_the_introduction_loads(tmp_path):
    path = tmp_path / "my-first.yaml"
    path.write_text(INTRO.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    assert loading.load(path).recipe.model.source.kind == "starter"


def test_the_pages_lie_where_editors_and_readers_look_for_them():
    assert {path.relative_to(PROJECT).as_posix() for path in pages()} == {"recipes/recipe.schema.json", "docs/recipe.md"}
