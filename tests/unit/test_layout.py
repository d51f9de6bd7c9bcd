"""What holds for all of the code: which module may import what, and how long things may be."""

import ast
import subprocess
import sys

import pytest

from tunestation.settings import PROJECT

HEAVY = ("torch", "transformers", "datasets", "gradio", "huggingface_hub", "openpyxl", "deepspeed", "peft")
LIGHT = (
    "app",
    "work",
    "recipe.loading",
    "recipe.schema",
    "pipeline.run",
    "pipeline.lock",
    "pipeline.plan",
    "pipeline.child",
    "settings",
    "errors",
    "report",
)
LIGHT += (
    "checking",
    "reference",
    "inspecting",
    "listing",
    "closing",
    "verifying",
    "creating",
    "catalog.datasets",
    "catalog.models",
    "models.folder",
    "models.limits",
    "talking",
    "stages",
    "stages.questions",
    "container",
    "runner",
    "linting",
    "training.order",
    "training.zero",
    "training.memory",
    "training.pace",
    "training.setup",
    "training.stock",
    "training.advice",
    "planning",
    "doctor.main",
)
SOURCES = sorted((PROJECT / "src").rglob("*.py"))


def test_what_answers_at_once_imports_no_heavy_package():
    modules = ", ".join(f"tunestation.{name}" for name in LIGHT)
    code = f"import sys, {modules}; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(PROJECT / "src")}
    )
    assert found.stdout == "[]\n"


def test_the_pipeline_knows_nothing_of_language_models():
    allowed = ("tunestation.pipeline", "tunestation.errors", "tunestation.settings")
    for path in (PROJECT / "src/tunestation/pipeline").glob("*.py"):
        ours = [name for name in imported(path) if name.startswith("tunestation")]
        assert [name for name in ours if not name.startswith(allowed)] == [], path.name


def imported(path) -> set[str]:
    """Modules that the file at `path` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def test_tasks_need_only_invoke_and_the_standard_library_before_the_stack_is_there():
    tasks, invoke = (loaded(f"import sys; sys.path.insert(0, 'src'); import {name}") for name in ("tasks", "invoke"))
    assert tasks - invoke - set(sys.stdlib_module_names) == {"tasks", "tunestation"}


def loaded(code: str) -> set[str]:
    """Top-level modules that a fresh Python holds after running `code` in the checkout."""
    code += "; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True).stdout.split())


def test_the_body_of_a_task_is_one_call():
    for node in ast.parse((PROJECT / "tasks.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            said, done = node.body
            assert isinstance(said.value, ast.Constant) and isinstance(done.value, ast.Call), node.name


def test_no_file_is_longer_than_300_lines():
    assert [path.name for path in SOURCES if len(path.read_text(encoding="utf-8").splitlines()) > 300] == []


def test_no_function_is_longer_than_50_lines():
    long = [f"{path.name}:{node.name}" for path in SOURCES for node in functions(path) if node.end_lineno - node.lineno >= 50]
    assert long == []


def test_everything_public_says_what_it_is():
    silent = []
    for path in SOURCES:
        if path.name.endswith("kernels.py"):
            continue  # ops.py says what each kernel computes
        tree = ast.parse(path.read_text(encoding="utf-8"))
        silent += [path.name] * (ast.get_docstring(tree) is None)
        silent += [f"{path.name}:{name}" for name, node in public(tree) if ast.get_docstring(node) is None]
    assert silent == []


def functions(path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)]


def public(tree: ast.Module) -> list[tuple[str, ast.AST]]:
    """Public functions and classes of a module, and public methods of classes without a base, which would name and explain them."""
    found = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")]
    classes = [node for node in found if isinstance(node, ast.ClassDef) and not node.bases]
    methods = [(kind.name, node) for kind in classes for node in kind.body if isinstance(node, ast.FunctionDef)]
    public_methods = [(f"{kind}.{node.name}", node) for kind, node in methods if not node.name.startswith("_")]
    return [*((node.name, node) for node in found), *public_methods]


@pytest.mark.parametrize("word", ["trust_remote_code=True", "weights_only=False"])
def test_no_code_of_others_is_ever_run(word):
    assert [path.name for path in SOURCES if word in path.read_text(encoding="utf-8")] == []


def test_no_two_test_files_have_one_name():
    names = [path.name for path in (PROJECT / "tests").glob("*/test_*.py")]
    assert len(names) == len(set(names))
