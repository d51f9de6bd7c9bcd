"""The tasks as a person types them: `invoke ...` in a process of its own, with its exit code and what it says."""

import os
import subprocess
import sys

import pytest
from recipes_for_tests import ROW, SMALL, write_rows

from tunestation.pipeline.run import alone
from tunestation.recipe import loading
from tunestation.settings import PROJECT


@pytest.fixture(scope="module")
def invoke(tmp_path_factory):
    """Runs a task; returns its exit code, what it printed, and what it said on stderr. A traceback fails the test."""
    folder = tmp_path_factory.mktemp("station")
    write_rows(folder / "recipes" / "rows.jsonl", [ROW])
    (folder / "recipes" / "small.yaml").write_text(SMALL, encoding="utf-8")
    bad = SMALL.replace("name: small", "name: bad").replace("epochs: 1", "epoch: 1").replace("rank: 8", "rank: many")
    (folder / "recipes" / "bad.yaml").write_text(bad, encoding="utf-8")
    places = {"TUNE_RUNNER": "here", "TUNE_HOME": str(folder / "home"), "TUNE_RECIPES": str(folder / "recipes"), "CUDA_VISIBLE_DEVICES": ""}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TUNE_")}

    def run(*words: str, **more: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "invoke", *words]
        done = subprocess.run(command, cwd=PROJECT, env=kept | places | more, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stdout + done.stderr
        return done.returncode, done.stdout.replace(f"{folder}/", ""), done.stderr.replace(f"{folder}/", "")

    def unread(*words: str) -> tuple[int, str]:
        reader, writer = os.pipe()
        os.close(reader)
        command, environment = [sys.executable, "-m", "invoke", *words], kept | places
        done = subprocess.run(command, cwd=PROJECT, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writer)
        return done.returncode, done.stderr

    run.folder, run.unread = folder, unread
    return run


def test_a_bad_recipe_tells_every_problem_with_exit_code_2_and_runs_nothing(invoke):
    code, out, said = invoke("reproduce", "bad")
    assert (code, out) == (2, "")
    assert said.splitlines() == [
        "recipes/bad.yaml:12: train.epoch is not a field. Did you mean 'epochs'?",
        "recipes/bad.yaml:13: train.lora.rank must be a whole number, not 'many'.",
        "2 problems; nothing was run.",
    ]
    assert not (invoke.folder / "home" / "runs").exists()


def test_an_unknown_recipe_is_told_with_the_nearest_one_and_exit_code_2(invoke):
    assert invoke("status", "smal") == (2, "", "there is no recipe 'smal' in recipes. Did you mean 'small'?\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("check", "small", "--resolvd"), "No idea what '--resolvd' is!"),
        (("chek", "small"), "No idea what 'chek' is!"),
        (("check",), "'check' did not receive required positional arguments: 'recipe'."),
        (("plan", "small", "--gpus"), "Flag --gpus needed value and was not given one!"),
    ],
)
def test_words_that_no_task_knows_or_that_are_missing_are_told_with_exit_code_2(invoke, words, said):
    assert invoke(*words) == (2, "", f"{said} 'invoke --list' names the tasks, 'invoke --help TASK' explains one.\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("chat", "small", "--port", "web"), "--port: 'web' is not a whole number.\n"),
        (("plan", "small", "--gpus=two"), "--gpus: 'two' is not a whole number.\n"),
        (("import-xtuner", "iter_1.pth", "--model", "m", "--alpha", "big"), "--alpha: 'big' is not a number.\n"),
        (
            ("inspect", "small", "--tokenizer", "nowhere"),
            "--tokenizer: there is no folder 'nowhere'. Give one that holds a tokenizer's files.\n",
        ),
        (("inspect", "small", "--row", "-1"), "--row: there is no row -1: rows are counted from 1.\n"),
        (("sync", "small", "--to", "x", "--every", "-5"), "--every: -5 is no number of seconds. Give 1 or more, or 0 for once.\n"),
        (("train", "--help"), "'--help' stands where a recipe belongs. The recipe comes first; 'invoke --help TASK' explains a task.\n"),
    ],
)
def test_a_word_where_a_number_or_a_recipe_belongs_is_told_with_exit_code_2(invoke, words, said):
    assert invoke(*words) == (2, "", said)


def test_a_benchmark_that_does_not_begin_leaves_the_numbers_of_the_last_one(invoke):
    kept = invoke.folder / "home" / "cache" / "bench.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text("{}", encoding="utf-8")
    code, out, said = invoke("bench", "--shape", "nonsense")
    assert (code, out) == (2, "") and "invalid choice: 'nonsense'" in said
    assert kept.read_text(encoding="utf-8") == "{}"


def test_the_status_says_what_would_run_and_why(invoke):
    code, out, _ = invoke("status", "small", "--set", "train.epochs=2")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[2:]] == [
        [stage, "run"] for stage in ("fetch", "prepare", "train", "convert", "merge")
    ]
    assert "never run with these settings" in out


def test_the_status_says_that_a_run_is_going_on(invoke):
    runs = invoke.folder / "home" / "runs" / "small"
    said = "A run of this recipe is going on now; as things stand, another one after it would do this:\n"
    with alone(runs):
        assert invoke("status", "small")[1].startswith(said)
        assert invoke("reproduce", "small", "--dry-run")[1].startswith(said)
    assert said not in invoke("status", "small")[1]


def test_the_resolved_recipe_is_a_recipe(invoke, tmp_path):
    code, out, _ = invoke("check", "small", "--resolved")
    (tmp_path / "small.yaml").write_text(out, encoding="utf-8")
    assert code == 0
    assert loading.load(tmp_path / "small.yaml").recipe.train.lora.rank == 8


def test_the_list_of_recipes_can_be_searched(invoke):
    code, out, _ = invoke("recipes", "--like", "A SMALL")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[2:] if not line.startswith(" ")] == ["small"]


def test_a_list_whose_reader_has_had_enough_ends_without_a_word(invoke):
    assert invoke.unread("recipes") == (1, "")


def test_a_run_volume_that_takes_no_files_is_told_with_exit_code_1(invoke):
    code, _, said = invoke("fetch", "small", TUNE_RUNS=str(invoke.folder / "recipes" / "rows.jsonl" / "runs"))
    assert code == 1
    assert said.startswith("nothing can be written to recipes/rows.jsonl/runs/small (Not a directory). Make the folder writable")


def test_a_folder_that_takes_no_files_is_told_with_its_name_whatever_the_task(invoke):
    code, _, said = invoke("new", "mine", "--model", "starter", "--data", "alpaca", TUNE_RECIPES=str(invoke.folder / "recipes/bad.yaml"))
    assert code == 1
    assert said.startswith("recipes/bad.yaml cannot be used: ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--gpu", "rtx4091"), "--gpu: 'rtx4091' is no card with known rates. Did you mean 'rtx4090'? Choose from: "),
        (("--gpu", "Voodoo 3"), "--gpu: 'Voodoo 3' is no card with known rates. Choose from: "),
        (("--gpu", "h200", "--price", "cheap"), "--price: 'cheap' is no price. Give what an hour of one GPU costs, as 0.40."),
        (("--gpu", "h200", "--price", "-3"), "--price: '-3' is no price."),
        (("--gpu", "h200", "--price", "nan"), "--price: 'nan' is no price."),
    ],
)
def test_a_plan_for_what_is_not_known_is_told_with_exit_code_2(invoke, words, told):
    code, out, said = invoke("plan", "small", *words)
    assert (code, out) == (2, "")
    assert said.startswith(told)


def test_a_plan_needs_neither_a_gpu_nor_anything_fetched(invoke):
    code, out, _ = invoke("plan", "small", "--gpu", "rtx4090")
    assert code == 0
    assert "\nrtx4090  " in out and "activations and gradients" in out


def test_a_port_for_the_page_that_does_not_exist_is_told_before_anything_runs(invoke):
    said = "--port: there is no port 99999. Give one from 1 to 65535.\n"
    assert invoke("reproduce", "small", "--chat", "--port", "99999") == (2, "", said)
