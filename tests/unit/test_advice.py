"""What is advised where a training does not fit: settings that would fit, the cheapest of each kind, or another card."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipes_for_tests import Bench

from tunestation.planning import told as plan_told
from tunestation.recipe.schema import Runtime
from tunestation.recipe.train import Train
from tunestation.training import advice
from tunestation.training.cards import CARDS
from tunestation.training.memory import SPARE, Shape
from tunestation.training.setup import Estimate, Setup

SEVEN_B = Shape(4096, 14336, 32, 32, 8, 128, 92544, False, 64)


def plan(card, train, runtime=None, ranks=1):
    setup = Setup.of(Train(**train).model_dump(), Runtime(**runtime or {}).model_dump(), SEVEN_B, ranks, True)
    return Estimate.of(setup, CARDS[card])


def test_a_smaller_micro_batch_is_enough_for_long_rows_on_a_small_card():
    wide = plan("rtx4090", {"max_tokens": 8192}, {"micro_batch_size": 16, "gradient_checkpointing": False})
    assert not wide.fits
    first, *_ = advice.fits(wide)
    assert all(name.startswith("runtime.") for name in first.change) and first.plan.fits
    assert first.change["runtime.gradient_checkpointing"] == "auto" and first.change["runtime.micro_batch_size"] < 16
    assert re.search(r"^What should fit:\n  --set runtime\.(.|\\\n)*: \d+\.\d of 23.5 GiB.*, \d+% slower\n", advice.told(wide))


@given(
    train=st.fixed_dictionaries(
        {
            "method": st.sampled_from(["qlora", "lora", "full"]),
            "max_tokens": st.sampled_from([2048, 16384]),
            "optimizer": st.sampled_from(["adamw", "adamw_8bit"]),
        }
    ),
    micro=st.sampled_from([1, 4, 16]),
    checkpointing=st.sampled_from(["auto", True, False]),
    stage=st.sampled_from([0, 1, 2, 3]),
    card=st.sampled_from(["rtx4090", "a100-40", "h100"]),
    ranks=st.sampled_from([1, 4]),
    failed=st.booleans(),
)
def test_what_is_advised_is_a_recipe_and_fits(train, micro, checkpointing, stage, card, ranks, failed):
    runtime = {"micro_batch_size": micro, "gradient_checkpointing": checkpointing, "zero_stage": stage}
    old = plan(card, train | {"global_batch_size": 64}, runtime, ranks)
    for fit in advice.fits(old, failed):
        given = {part: {} for part in ("train", "train.base", "train.lora", "runtime")}
        for name, value in fit.change.items():
            section, _, field = name.rpartition(".")
            given[section][field] = value
        changed = train | {"global_batch_size": 64} | given["train"]
        changed |= {"base": given["train.base"]} if given["train.base"] else {}
        changed |= {"lora": given["train.lora"]} if given["train.lora"] else {}
        new = plan(card, changed, runtime | given["runtime"], ranks)  # refuses what a recipe may not say
        assert new.needed == pytest.approx(fit.plan.needed)
        assert new.needed <= CARDS[card].memory * (1 - SPARE / 2)
        assert not failed or new.needed <= 0.9 * old.needed


@given(
    train=st.fixed_dictionaries(
        {
            "method": st.sampled_from(["qlora", "lora", "full"]),
            "max_tokens": st.sampled_from([128, 8192, 262144]),
            "optimizer": st.sampled_from(["adamw", "paged_adamw_32bit"]),
        }
    ),
    micro=st.sampled_from([1, 4]),
    stage=st.sampled_from([0, 2, 3]),
    checkpointing=st.sampled_from(["auto", True, False]),
    memory=st.sampled_from([0.5, 8, 15.4321, 23.5, 139.8]),
    layers=st.sampled_from([2, 8]),
    vocabulary=st.sampled_from([92544, 3 * 10**6, 10**8]),  # with the larger ones several cards are named, or none
    ranks=st.sampled_from([1, 4]),
    failed=st.booleans(),
)
def test_no_line_of_advice_is_wider_than_100_columns(train, micro, stage, checkpointing, memory, layers, vocabulary, ranks, failed):
    runtime = {"micro_batch_size": micro, "gradient_checkpointing": checkpointing, "zero_stage": stage}
    shape = replace(SEVEN_B, layers=layers, vocabulary=vocabulary)
    setup = replace(plan("h200", train | {"global_batch_size": 16}, runtime, ranks).setup, shape=shape)
    said = advice.told(Estimate.of(setup, replace(CARDS["rtx4090"], memory=memory)), failed)
    lines = f"{advice.does_not_fit(train['max_tokens'] * micro, memory)} {said}".split("\n")
    assert max(map(len, lines)) <= 100
    typed = " ".join(line.removesuffix("\\").partition(": ")[0] for line in lines[1:])  # a backslash joins lines of one command
    assert all(setting.startswith(("train.", "runtime.")) for setting in re.findall(r"--set (\S+)", typed))


def test_what_changes_learning_more_is_told_only_if_it_is_faster():
    found = advice.fits(plan("a100-80", {"method": "full", "max_tokens": 2048}))
    speeds = [fit.plan.speed for fit in found]
    assert speeds == sorted(speeds) and len(found) > 1
    assert "train.method" in found[-1].change and "train.method" not in found[0].change


def test_memory_that_ran_out_against_the_plan_gets_advice_that_takes_clearly_less():
    old = plan("rtx4090", {"max_tokens": 2048})
    assert old.fits
    first, *_ = advice.fits(old, failed=True)
    assert first.change and first.plan.needed <= 0.9 * old.needed


def test_where_nothing_fits_the_smallest_card_that_suffices_is_named():
    tiny = replace(CARDS["rtx4090"], name="small", memory=0.5)
    alone = replace(plan("rtx4090", {"max_tokens": 2048}), card=tiny)
    told = r"No setting makes it fit.\nThe smallest known card that suffices is rtx3060: \S+ of 11.7 GiB."
    assert re.fullmatch(told, advice.told(alone))


def test_where_no_card_suffices_several_are_thought_of():
    large = replace(plan("h200", {"method": "full", "max_tokens": 2048}).setup, shape=replace(SEVEN_B, layers=160))
    said = advice._larger(Estimate.of(large, CARDS["h200"]))
    assert re.match(r"No known card suffices alone; \d x h\d00 do with --set runtime.zero_stage=3 --set runtime.micro_batch_size=1: ", said)
    huge = replace(large, shape=replace(SEVEN_B, layers=1600))
    assert advice._larger(Estimate.of(huge, CARDS["h200"])) == "No known card suffices either."


def test_the_plan_of_one_card_that_is_too_small_says_what_would_fit(tmp_path, monkeypatch):
    bench = Bench(tmp_path, monkeypatch)
    hub = ("source: {kind: starter}", "source: {kind: hub, repo: internlm/internlm2-chat-7b}")
    said = plan_told(bench.open(hub, ("train:", "train:\n  method: full")), ["a100-80"], 1, None)
    assert "What should fit:\n  --set runtime.offload=optimizer: " in said and "GiB of host memory" in said
