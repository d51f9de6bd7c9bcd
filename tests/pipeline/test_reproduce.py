"""One command from data to a model, again and again: what runs, what is skipped, and what the lock says."""

import json
import re
import subprocess
from contextlib import contextmanager

import pytest
from station import Station, recipe
from transformers import AutoModelForCausalLM

from tunestation import app
from tunestation.errors import InputError, ReproductionDiffers, TunestationError
from tunestation.pipeline.plan import plan

STAGES = ["fetch", "prepare", "train", "convert", "merge", "evaluate"]
CHECK = {"name": "sums", "source": {"kind": "files", "paths": ["questions.jsonl"]}}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    made = Station(tmp_path_factory.mktemp("reproduce"))
    made.write_rows([{"prompt": "What is 1 and 1?", "answer": "It is 2, of course."}], "questions.jsonl")
    made.write(recipe(evaluate={"fraction": 0.1, "prompts": ["What is 1 and 1?"], "max_new_tokens": 6, "checks": [CHECK]}))
    return made


@pytest.fixture(scope="module")
def first(workspace):
    """What the first run said, without a network."""
    return workspace.invoke("reproduce", "tiny", "--offline")


@pytest.fixture
def tell(workspace, first, capsys):
    """Calls a task in this process; returns what it printed."""

    def call(task, *arguments, **options):
        capsys.readouterr()
        with workspace.here():
            getattr(app, task)("tiny", *arguments, **options)
        return capsys.readouterr().out

    return call


def folder(workspace, stage, *assignments):
    return workspace.open(*assignments).folder(stage)


def steps(workspace, *assignments, forced=False):
    """Stage -> (what would happen, why)."""
    work = workspace.open(*assignments)
    return {step.stage.name: (step.action, step.reason) for step in plan(work.stages, work.shelf, forced)}


def would_run(workspace, *assignments):
    return [name for name, (action, _) in steps(workspace, *assignments).items() if action != "skip"]


@contextmanager
def edited(path, change):
    """The file with its content changed, put back at the end."""
    before = path.read_bytes()
    path.write_bytes(change(before))
    try:
        yield
    finally:
        path.write_bytes(before)


def flip_last(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def test_the_first_run_makes_a_folder_that_transformers_loads_and_a_lock(workspace, first):
    model = AutoModelForCausalLM.from_pretrained(folder(workspace, "merge"))
    assert model.num_parameters() == 135488
    lock = json.loads((workspace.recipes / "tiny.lock.json").read_text())
    assert list(lock["stages"]) == sorted(STAGES)
    assert set(lock["stages"]["train"]["metrics"]) == {"loss", "held_out_loss"}
    assert set(lock["stages"]["evaluate"]["metrics"]) == {"sums", "sums_base"}
    assert "Lock written" in first
    assert "Chat with it: invoke chat tiny" in first


def test_every_result_can_be_audited_with_sha256sum(workspace, first):
    for stage in STAGES:
        audit = ["sha256sum", "-c", "SHA256SUMS"]
        assert "OK" in subprocess.run(audit, cwd=folder(workspace, stage), capture_output=True, text=True, check=True).stdout
        assert json.loads((folder(workspace, stage) / "stage.json").read_text())["stage"] == stage


def test_the_terminal_shows_progress_and_no_chatter_of_libraries(first):
    assert "held-out loss" in first
    assert "11/11" in first
    for chatter in ("Warning", "WARNING", "INFO", "it/s"):
        assert chatter not in first


def test_a_second_run_skips_everything_and_says_bit_equal(workspace, first):
    said = workspace.invoke("reproduce", "tiny")
    assert said.count("skipped") == len(STAGES)
    assert said.count("bit-equal") == len(STAGES)


def test_forced_it_is_byte_equal_and_says_so(workspace, first):
    said = workspace.invoke("reproduce", "tiny", "--force")
    assert said.count("done again, byte-equal to the result before") == len(STAGES)
    assert said.count("bit-equal") == len(STAGES)


def test_an_edited_output_is_noticed_and_only_its_stage_runs_again(workspace, tell):
    target = folder(workspace, "convert") / "adapter_model.safetensors"
    target.write_bytes(target.read_bytes()[:-1] + b"\0")
    assert steps(workspace)["convert"] == ("run", "its output adapter_model.safetensors is missing or was edited")
    assert "its output adapter_model.safetensors is missing or was edited" in tell("status")
    said = tell("reproduce")
    assert "[convert] run" in said
    assert "byte-equal" in said
    assert said.count("skipped") == len(STAGES) - 1


def test_a_missing_output_is_noticed(workspace, first):
    (folder(workspace, "evaluate") / "answers.json").rename(workspace.root / "answers.json")
    assert would_run(workspace) == ["evaluate"]
    (workspace.root / "answers.json").rename(folder(workspace, "evaluate") / "answers.json")
    assert would_run(workspace) == []


def test_changed_data_run_everything_that_follows_from_them_and_the_old_result_is_found_again(workspace, first):
    with edited(workspace.recipes / "rows.jsonl", lambda content: content.replace(b"What is 0 and 1?", b"How much is 0 and 1?")):
        assert would_run(workspace) == STAGES[1:]
        assert "settings changed (parts[0].files[0].sha256:" in steps(workspace)["prepare"][1]
    with edited(workspace.recipes / "questions.jsonl", lambda content: content + b"\n"):
        assert would_run(workspace) == ["evaluate"]
    assert would_run(workspace) == []


def test_a_changed_model_file_is_noticed_and_fetch_tells_the_rest(workspace, tell):
    with edited(workspace.model / "generation_config.json", lambda content: content + b"\n"):
        assert steps(workspace)["fetch"] == ("run", "models:tiny/generation_config.json is missing or was changed")
        assert steps(workspace)["prepare"][1] == "waits for fetch; skipped if its result is the same"
        tell("stage", "fetch")
        assert steps(workspace)["prepare"] == ("run", "the result of fetch has other bytes than before")
    tell("stage", "fetch")
    assert would_run(workspace) == []


@pytest.mark.parametrize(
    ("assignment", "stages"),
    [
        ("chat.title=Other", []),
        ("chat.system=Be brief.", []),
        ("chat.generation.temperature=0", ["merge", "evaluate"]),
        ("runtime.zero_stage=0", []),
        ("runtime.micro_batch_size=2", []),
        ("runtime.min_gpu_memory_gb=24", []),
        ("summary=Another text", []),
        ("export.dtype=float32", ["merge", "evaluate"]),
        ("export.checkpoint=best", ["convert", "merge", "evaluate"]),
        ("train.learning_rate=1e-4", ["train", "convert", "merge", "evaluate"]),
        ("evaluate.prompts=[]", ["train", "convert", "merge", "evaluate"]),
        ("train.max_tokens=64", ["prepare", "train", "convert", "merge", "evaluate"]),
    ],
)
def test_a_setting_runs_the_stages_that_it_shapes_and_no_other(workspace, first, assignment, stages):
    assert would_run(workspace, assignment) == stages


def test_a_dry_run_says_what_would_happen_and_does_nothing(workspace, tell):
    before = sorted(path.name for path in (workspace.root / "home" / "runs" / "tiny").iterdir())
    said = tell("reproduce", ("train.seed=1",), dry_run=True)
    assert "settings.seed: 42 -> 1" in said
    would = dict(re.findall(r"^(\w+) +(run|skip) ", said, re.M))
    assert would == {name: "skip" if name == "fetch" else "run" for name in STAGES}
    assert tell("reproduce", dry_run=True, force=True).count("forced") == len(STAGES)
    assert sorted(path.name for path in (workspace.root / "home" / "runs" / "tiny").iterdir()) == before


def test_set_until_a_stage_runs_so_far_and_compares_with_no_lock(workspace, tell):
    lock = (workspace.recipes / "tiny.lock.json").read_bytes()
    said = tell("reproduce", ("train.epochs=0.2",), until="convert")
    assert "Not compared with the lock: --set changed the recipe." in said
    assert "[convert] run" in said
    assert "merge" not in said
    assert (workspace.recipes / "tiny.lock.json").read_bytes() == lock


def test_verify_is_content_with_untouched_results(tell):
    assert tell("verify").count("bit-equal") == len(STAGES)


@pytest.mark.parametrize("stage", ["prepare", "train", "merge"])
def test_verify_notices_one_flipped_byte_and_names_the_file(workspace, tell, stage):
    target = max((path for path in folder(workspace, stage).rglob("*") if path.suffix in (".arrow", ".pt", ".safetensors")), key=str)
    with edited(target, flip_last), pytest.raises(TunestationError, match="has other bytes than when it was made") as caught:
        tell("verify")
    assert caught.value.exit_code == 1
    assert str(target) in str(caught.value)
    assert len(caught.value.problems) == 1


def test_verify_misses_a_list_of_digests_that_is_gone(workspace, tell):
    sums = folder(workspace, "merge") / "SHA256SUMS"
    kept = sums.read_bytes()
    sums.unlink()
    try:
        with pytest.raises(TunestationError, match=r"SHA256SUMS: is missing\. Make it again: invoke reproduce tiny"):
            tell("verify")
    finally:
        sums.write_bytes(kept)


@contextmanager
def away(path):
    """Without `path` for a while."""
    aside = path.rename(path.with_name(f"aside-{path.name}"))
    try:
        yield
    finally:
        aside.rename(path)


def test_verify_misses_a_result_from_which_others_came(workspace, tell):
    gone = folder(workspace, "merge")
    with away(gone), pytest.raises(TunestationError) as caught:
        tell("verify")
    assert str(caught.value) == f"{gone}: is missing, though evaluate came of it. Make it again: invoke reproduce tiny"


@pytest.mark.parametrize("content", [None, b"{bad"])
def test_verify_misses_a_record_and_says_if_it_is_damaged(workspace, tell, content):
    path = folder(workspace, "evaluate") / "stage.json"
    kept = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    try:
        with pytest.raises(TunestationError, match=r"stage\.json: is missing or damaged\. Make it again: invoke reproduce tiny"):
            tell("verify")
    finally:
        path.write_bytes(kept)


def test_verify_names_what_was_never_made_and_a_lock_that_is_not_there(workspace, tell):
    with away(folder(workspace, "evaluate")), away(workspace.recipes / "tiny.lock.json"):
        said = tell("verify")
    assert "no result yet, so not verified: evaluate\n" in said
    assert "There is no lock to compare with: 'invoke reproduce tiny' writes" in said


def test_verify_notices_a_changed_file_of_the_model(workspace, tell):
    with edited(workspace.model / "model.safetensors", flip_last), pytest.raises(TunestationError, match=r"model\.safetensors: has other"):
        tell("verify")


@pytest.fixture
def lock(workspace, first):
    """The lock as a dict to change and write; put back at the end."""
    path = workspace.recipes / "tiny.lock.json"
    before = path.read_bytes()
    value = json.loads(before)
    yield value, lambda: path.write_text(json.dumps(value))
    path.write_bytes(before)


def test_other_bytes_on_an_equal_machine_are_a_difference_with_exit_code_3(workspace, tell, lock):
    value, write = lock
    value["stages"]["train"]["outputs"] = "0" * 64
    write()
    assert "other bytes from equal inputs" in workspace.invoke("verify", "tiny", code=3)
    with pytest.raises(ReproductionDiffers):
        tell("reproduce")


def test_from_another_machine_a_metric_within_its_tolerance_is_accepted_and_one_outside_is_not(tell, lock, capsys):
    value, write = lock
    train = value["stages"]["train"]
    train |= {"outputs": "0" * 64, "kind": "1 x another device"}
    measured = train["metrics"]["loss"]["value"]
    train["metrics"]["loss"]["value"] = measured / 1.02
    write()
    assert "metrics within 2.00%" in tell("reproduce")
    train["metrics"]["loss"]["value"] = measured / 1.2
    write()
    with pytest.raises(ReproductionDiffers, match="does not reproduce its lock"):
        tell("reproduce")
    assert "loss is off by 20.00%" in capsys.readouterr().out


def test_other_versions_of_packages_are_not_compared_and_are_named(tell, lock):
    value, write = lock
    value["stages"]["train"] |= {"key": "0" * 64, "tools": value["stages"]["train"]["tools"] | {"peft": "0.1"}}
    write()
    said = tell("reproduce")
    assert "not comparable" in said
    assert "peft" in said


def test_a_lock_is_never_written_from_a_recipe_that_was_changed_for_once(tell):
    with pytest.raises(InputError, match="--update-lock: a lock is that of the recipe as it stands"):
        tell("reproduce", ("train.epochs=2",), update_lock=True)


def test_update_lock_accepts_the_results_and_keeps_tolerances_set_by_hand(workspace, tell, lock):
    value, write = lock
    value["stages"]["train"]["outputs"] = "0" * 64
    value["stages"]["train"]["metrics"]["loss"]["tolerance"] = 0.01
    write()
    assert "Lock written" in tell("reproduce", update_lock=True)
    assert tell("reproduce").count("bit-equal") == len(STAGES)
    again = json.loads((workspace.recipes / "tiny.lock.json").read_text())
    assert again["stages"]["train"]["metrics"]["loss"]["tolerance"] == 0.01
