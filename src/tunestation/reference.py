"""The pages about recipes that are written from the schema: the reference for people, and the JSON schema for editors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunestation.recipe.schema import Recipe
from tunestation.settings import PROJECT

Node = dict[str, Any]
"""A part of a JSON schema."""

INTRO = """\
# Recipe reference

Written by `invoke docs` from the schema that reads recipes; do not edit it by hand.

A recipe is one YAML file below `recipes/`, called `<name>.yaml`. It says what to make, and nothing about the machine that makes it:
folders, ports and tokens come from `TUNE_*` variables. The smallest one names a model and data, and takes every other value from this page:

```yaml
# yaml-language-server: $schema=recipe.schema.json
schema_version: 1
name: my-first
summary: Teach the starter model to answer like me.
model:
  source: {kind: starter}
data:
  sources:
    - source: {kind: files, paths: [data/mine.jsonl]}     # rows {"messages": [{"role": "user", "content": ...}, ...]}
template: chatml
```

How to read this page: a section is a part of the recipe, under the name by which you reach it, as in `train.lora`; `[]` is one item of a
list. A table lists all fields there are. A field whose default is **required** has to be given; *unset* means that nothing is set unless
you do. Where a part comes in kinds, `kind` chooses one, and each kind has a section with its own fields.

- `invoke check NAME` reads a recipe, tells every problem at once with its line, and runs nothing.
- `invoke check NAME --resolved` prints it with every default filled in.
- `--set train.epochs=1` puts a value in place of the recipe's for one run; items of lists are counted from 0:
  `--set data.sources.0.repeat=5`.
- The first line of the example lets editors with a YAML language server complete and check fields while you type.
- `chat` and `runtime` shape no result, so changing them runs nothing again. One exception: `chat.generation` is written into the merged
  folder.
"""


def write_all() -> list[Path]:
    """Write all pages; returns where they are."""
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    return list(pages())


def pages() -> dict[Path, str]:
    """Path -> text of every page, without writing any."""
    return {PROJECT / "recipes" / "recipe.schema.json": schema_json(), PROJECT / "docs" / "recipe.md": recipe_page()}


def schema_json() -> str:
    """The JSON schema of a recipe. Fields keep the order of the page; everything else is sorted."""
    return json.dumps(_sorted(Recipe.model_json_schema()), ensure_ascii=False, indent=1) + "\n"


def _sorted(node: Any, keep: bool = False) -> Any:
    if isinstance(node, dict):
        names = node if keep else sorted(node)
        return {name: _sorted(node[name], keep=name == "properties") for name in names}
    return [_sorted(item) for item in node] if isinstance(node, list) else node


def recipe_page() -> str:
    """The reference page, in Markdown."""
    page = _Page(Recipe.model_json_schema())
    sections = [page.section("recipe", page.schema)]
    while page.waiting:
        sections.append(page.section(*page.waiting.pop(0)))
    return "\n".join([INTRO, *sections])


class _Page:
    """Sections of a schema, each part once; parts that a section mentions are `waiting`."""

    def __init__(self, schema: Node):
        self.schema = schema
        self.waiting: list[tuple[str, Node]] = []
        self.titles: dict[str, str] = {}

    def section(self, title: str, node: Node) -> str:
        """Heading, description and table of one part; the parts below it come next, before those that wait already."""
        prefix = "" if node is self.schema else f"{title.partition(', kind')[0]}."
        before, self.waiting = self.waiting, []
        required = node.get("required", [])
        rows = [self._row(prefix, name, field, name in required) for name, field in node.get("properties", {}).items()]
        self.waiting += before
        table = ["", "| field | type | default | what it does |", "|---|---|---|---|", *rows]
        return "\n".join([f"## {title}", "", _line(node.get("description", "")), *table, ""])

    def _row(self, prefix: str, name: str, field: Node, required: bool) -> str:
        default = "**required**" if required else _default(field)
        text = "Chooses this kind." if name == "kind" else _line(field.get("description", ""))
        return f"| `{name}` | {self._type(f'{prefix}{name}', field)} | {default} | {text} |"

    def _type(self, title: str, node: Node) -> str:
        if "$ref" in node:
            return f"a part: {self._link(title, node['$ref'])}"
        if "discriminator" in node:
            return "one of the kinds " + ", ".join(self._link(title, ref, kind) for kind, ref in self._kinds(node["oneOf"]))
        if "anyOf" in node:
            return " or ".join(self._type(title, choice) for choice in node["anyOf"] if choice.get("type") != "null")
        if node.get("type") == "array":
            return self._list(title, node)
        return _plain_type(node)

    def _kinds(self, choices: list[Node]) -> Iterator[tuple[str, str]]:
        """(kind, reference) in the order of the schema; several kinds may share a section."""
        for choice in choices:
            kind = self.schema["$defs"][choice["$ref"].rsplit("/", 1)[1]]["properties"]["kind"]
            yield from ((name, choice["$ref"]) for name in kind.get("enum") or [kind["const"]])

    def _list(self, title: str, node: Node) -> str:
        if "prefixItems" in node:
            return f"list of {len(node['prefixItems'])}: " + ", ".join(self._type(title, item) for item in node["prefixItems"])
        item = self._type(f"{title}[]", node["items"]).removeprefix("a part: ").replace("text", "texts")
        return f"list of {item}{', at least one' if node.get('minItems') else ''}"

    def _link(self, title: str, ref: str, kind: str = "") -> str:
        """A link to the section of a part, which is put on the page the first time."""
        full = f"{title}, kind {kind}" if kind else title
        if ref not in self.titles:
            self.titles[ref] = full
            self.waiting.append((full, self.schema["$defs"][ref.rsplit("/", 1)[1]]))
        return f"[{kind or full}](#{_anchor(self.titles[ref])})"


def _plain_type(node: Node) -> str:
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return "one of " + ", ".join(f"`{value}`" for value in node["enum"])
    if node["type"] == "object":
        return "texts by name"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    return words[node["type"]] + _range(node)


def _range(node: Node) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    bounds = {"exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below", "maximum": "up to"}
    return "".join(f" {word} {node[name]}" for name, word in bounds.items() if name in node)


def _default(field: Node) -> str:
    value = field.get("default")
    if "$ref" in field:
        return "its defaults"
    if value is None:
        return "*unset*"
    if value in ("", [], {}):
        return "empty"
    if isinstance(value, dict):
        return "kind " + ", ".join(f"`{item}`" for item in value.values())
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _line(text: str) -> str:
    """`text` in one line, safe inside a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _anchor(title: str) -> str:
    """How GitHub calls the heading `title` in links."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
