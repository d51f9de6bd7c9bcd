"""Benchmarks of the training step: a case or a stack that fails takes no other's rows with it, and none is left out in silence."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import attention
import cases
import measuring
import parts
import peers
import step


def rows(out):
    """Those in a file of results."""
    return json.loads(out.read_text(encoding="utf-8"))["rows"]


def test_a_case_that_fails_says_why_and_the_next_is_measured(tmp_path, monkeypatch):
    out, real = tmp_path / "step.json", step.measure
    monkeypatch.setattr(step, "measure", lambda case, *rest: fail() if case.dropout else real(case, *rest))
    assert step.run(["H", "C"], 1, 1, [], "tiny", out) == 1
    failed, measured = rows(out)
    assert failed == {"case": "H", "stack": "tunestation", "deepspeed": False, "failed": "OutOfMemoryError: none is left"}
    assert measured["case"] == "C"
    assert measured["tokens_per_second"] > 0
    assert set(json.loads(out.read_text(encoding="utf-8"))["machine"]) >= {"gpu", "driver", "versions"}


def fail():
    raise torch.OutOfMemoryError("none is left\nand more of it")


def test_a_stack_that_is_not_there_says_so_for_every_case(tmp_path, monkeypatch):
    monkeypatch.setitem(peers.STACKS, "unsloth", ("unsloth", "peer_unsloth", "no_such_package", "Install it."))
    peers.measure("unsloth", ["A", "F"], "tiny", 1, 1, tmp_path / "peers.json")
    why = "ModuleNotFoundError: No module named 'no_such_package'. Install it."
    assert rows(tmp_path / "peers.json") == [{"case": case, "stack": "unsloth", "absent": why} for case in "AF"]


def test_rows_of_another_interpreter_name_the_versions_that_differ(tmp_path, monkeypatch):
    out = tmp_path / "peers.json"
    for found in ("absent", "0.6.1", "absent"):
        monkeypatch.setattr(measuring, "machine", lambda found=found: {"gpu": "", "versions": {"torchtune": found, "torch": "2.11.0"}})
        measuring.save([{"case": "A"}], out)
    assert rows(out) == [{"case": "A"}, {"case": "A", "versions": {"torchtune": "0.6.1"}}, {"case": "A"}]
    assert json.loads(out.read_text(encoding="utf-8"))["machine"] == {"gpu": "", "versions": {"torchtune": "absent", "torch": "2.11.0"}}


def test_a_setting_that_fails_leaves_the_others_and_losses_agree_with_ours(tmp_path, monkeypatch):
    import peer_transformers

    out = tmp_path / "peers.json"
    settings = [cases.Setting(8, True), cases.Setting(8, False, packs=True), cases.Setting(3, False, packs=True)]
    monkeypatch.setattr(peer_transformers, "settings", lambda case: settings)
    monkeypatch.setattr(peer_transformers, "model", once_failing(peer_transformers.model))
    peers.measure("transformers", ["F", "E"], "tiny", 1, 1, out)
    step.run(["F"], 1, 1, [], "tiny", out)
    failed, whole, parts, eight, ours = rows(out)
    assert failed["failed"] == "OutOfMemoryError: none is left"
    assert failed["note"] == "8 x padded rows of up to 600 tokens at once, checkpointing on"
    assert eight["absent"] == "it has no frozen base in 8-bit floats under adapters"
    assert {row["tokens_per_step"] for row in (whole, parts, ours)} == {8 * cases.TINY}
    for row in (parts, ours):
        assert row["losses"] == pytest.approx(whole["losses"], abs=3e-3)


def once_failing(real):
    """`real`, but not at the first call."""
    calls = []

    def called(case):
        calls.append(case)
        return fail() if len(calls) == 1 else real(case)

    return called


def test_a_stack_whose_process_dies_fails_in_that_case_and_goes_on_with_the_next(tmp_path):
    out, python = tmp_path / "peers.json", tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *"A,F"*) exit 7;; esac\nexec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    peers.theirs("unsloth", str(python), ["A", "F"], ["--shape", "tiny"], out)
    died, absent = rows(out)
    assert died == {"case": "A", "stack": "unsloth", "failed": "its process ended with 7"}
    assert absent["case"] == "F"
    assert "absent" in absent or "failed" in absent


def test_the_published_cases_are_all_there_and_each_is_run_without_deepspeed_and_with_it():
    assert step.named("all") == [each for name in cases.TABLE for each in (name, f"{name}+zero")]
    assert {"A", "B", "C", "D", "D16", "D-stream", "E", "F", "G", "H", "24"} == set(cases.TABLE)
    kinds = [(case.deepspeed, case.offload, case.optimizer) for case in map(cases.case_of, ("D", "D+zero", "D-host", "D-host+zero"))]
    assert kinds == [(False, False, "paged"), (True, False, "paged"), (False, False, "paged"), (True, True, "adamw")]
    assert cases.case_of("24").capped


@pytest.mark.parametrize("kind", attention.LENGTHS)
def test_attention_is_measured_on_documents_of_each_kind(kind):
    row = attention.measure("1.8b", kind, False, "torch", attention.ByTorch)
    assert row["case"] == f"attention-1.8b-{kind}"
    assert row.keys() == {"case", "stack", "forward_us", "both_us", "host_us"}
    assert sum(attention.lengths(kind)) == (attention.LENGTH if kind == "one" else attention.TOKENS)


def test_the_parts_of_a_step_are_timed_in_their_places_which_are_as_before_afterwards(tmp_path):
    before = [getattr(owner, name) for owner, name in parts.PLACES]
    parts.main("G", "tiny", tmp_path / "parts.json")
    assert [getattr(owner, name) for owner, name in parts.PLACES] == before
    whole, *found = rows(tmp_path / "parts.json")
    assert whole["part"] == "step"
    assert {each["part"] for each in found} >= {"ops.outer", "ByTorch.__init__", "ByTorch.gradients", "ops.rms_norm", "ops.copy"}
    gate_and_up = [each for each in found if each["sizes"] == [[512, 384], [384, 1024]]]
    assert [(each["part"], each["calls"]) for each in gate_and_up] == [("ops.product", 2)]
