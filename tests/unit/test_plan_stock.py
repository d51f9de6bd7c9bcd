"""Plans for transformers' own step, all weights learning or shared by several GPUs: against what was measured, and among themselves."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipes_for_tests import Bench

from tunestation.catalog.models import CONVERTED, models
from tunestation.planning import plans, told
from tunestation.recipe.schema import Runtime
from tunestation.recipe.train import Train
from tunestation.report import width
from tunestation.settings import PROJECT
from tunestation.training import cards, families
from tunestation.training.memory import GIB, Shape
from tunestation.training.setup import Estimate, Setup

STARTER = Shape(256, 688, 6, 4, 4, 64, 4096, True, 64)
SHAPES = {"A": Shape(4096, 14336, 32, 32, 8, 128, 92544, False, 64), "G": Shape(2048, 8192, 24, 16, 8, 128, 92544, False, 64)}
LARGE = [
    shape
    for model in models().values()
    if not model.shape.experts and not families.missing(config := model.shape.model_dump(exclude_none=True))
    if (shape := Shape.of(config, 64)).weights > 6e9
]


def setup(shape, train, runtime, ranks=1, known=False):
    return Setup.of(Train(**train).model_dump(), Runtime(**runtime).model_dump(), shape, ranks, known)


def rows(name, pick):
    return [row for row in json.loads((PROJECT / "bench" / "results" / name).read_text(encoding="utf-8"))["rows"] if pick(row)]


def test_a_full_training_is_planned_within_8_percent_of_its_memory_and_20_of_its_time():
    (row,) = rows("2026-11-23-h200-starter.json", lambda row: row["case"] == "starter: training")
    train = {"method": "full", "max_tokens": 512, "global_batch_size": 64}
    plan = Estimate.of(setup(STARTER, train, {"micro_batch_size": 64, "gradient_checkpointing": False}), cards.CARDS["h200"])
    assert plan.needed * GIB / 1e9 == pytest.approx(row["peak_gb"], rel=0.08)
    assert plan.speed == pytest.approx(row["tokens_per_second"], rel=0.2)


def measured():
    """Rows of transformers + peft in all committed results, but for documents in packs: recipes lay no block masks."""
    for path in sorted((PROJECT / "bench" / "results").glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")).get("rows", []):
            if row.get("stack") == "transformers + peft" and "peak_gib" in row and not row["case"].startswith("F"):
                paged = path.stem == "2026-11-24-h200-step" or row["case"].startswith(("B", "C", "D"))
                yield pytest.param(row, paged, id=f"{path.stem}/{row['case']} {row['note']}")


@pytest.mark.parametrize(("row", "paged"), measured())
def test_transformers_and_peft_are_planned_within_8_percent_of_memory_and_20_of_speed(row, paged):
    sequences, length = map(int, re.search(r"(\d+) x (\d+) tokens", row["note"]).groups())
    lora = {"rank": 16 if row["case"].endswith("16") else 64, "dropout": 0.1 if row["case"] == "H" else 0}
    optimizer = "paged_adamw_32bit" if paged else "adamw"
    batch = round(row.get("tokens_per_step", sequences * length) / length)
    train = {"max_tokens": length, "global_batch_size": batch, "lora": lora, "optimizer": optimizer}
    train |= {"base": {"type": "bf16"}} if row["case"] == "bf16" else {}
    runtime = {"micro_batch_size": sequences, "gradient_checkpointing": "checkpointing on" in row["note"]}
    recipe = setup(SHAPES.get(row["case"], SHAPES["A"]), train, runtime)
    plan = Estimate.of(replace(recipe, stage=None), cards.CARDS["h200"])
    assert plan.needed == pytest.approx(row["peak_gib"], rel=0.08)
    assert plan.speed == pytest.approx(row["tokens_per_second"], rel=0.2)


SETTINGS = {
    "shape": st.sampled_from(LARGE),
    "method": st.sampled_from(["full", "lora", "qlora"]),
    "optimizer": st.sampled_from(["adamw", "adamw_8bit"]),
    "tokens": st.sampled_from([512, 2048, 8192]),
    "again": st.booleans(),
    "offload": st.sampled_from(["none", "optimizer"]),
}


def needed(shape, method, optimizer, tokens, again, offload, stage, ranks):
    train = {"method": method, "optimizer": optimizer, "max_tokens": tokens, "global_batch_size": 64}
    runtime = {"zero_stage": stage, "gradient_checkpointing": again, "offload": offload}
    return sum(setup(shape, train, runtime, ranks).stock.components(tokens).values())


@given(**SETTINGS, stage=st.sampled_from([1, 2, 3]))
def test_more_gpus_never_need_more_memory_each(stage, **settings):
    found = [needed(**settings, stage=stage, ranks=ranks) for ranks in (2, 4, 8, 16)]
    assert found == sorted(found, reverse=True)
    if stage < 3:  # with two GPUs ZeRO-3 begins to bring weights together
        assert needed(**settings, stage=stage, ranks=1) >= found[0]


@given(**SETTINGS, ranks=st.sampled_from([2, 4, 8]))
def test_higher_zero_stages_never_need_more_memory_in_models_of_6b_and_more(ranks, **settings):
    one, two, three = (needed(**settings, stage=stage, ranks=ranks) for stage in (1, 2, 3))
    assert three <= two <= one
    if settings["offload"] == "none":
        assert one <= needed(**settings, stage=0, ranks=ranks)


@given(**SETTINGS, stage=st.sampled_from([0, 1, 2, 3]), ranks=st.sampled_from([1, 4]))
def test_longer_rows_and_activations_that_are_kept_never_need_less(stage, ranks, **settings):
    fixed = {name: value for name, value in settings.items() if name not in ("tokens", "again")} | {"stage": stage, "ranks": ranks}
    if not stage:
        fixed["offload"] = "none"
    found = [needed(**fixed, tokens=tokens, again=again) for tokens in (512, 2048) for again in (True, False)]
    assert found[0] <= found[1] and found[2] <= found[3] and found[0] <= found[2]


def test_offloading_moves_master_copies_and_adams_states_to_host_memory():
    train = {"method": "full", "max_tokens": 2048, "global_batch_size": 8}
    kept, moved, all_ = (
        Estimate.of(setup(SHAPES["A"], train, {"zero_stage": 3, "offload": offload}, 8), cards.CARDS["h100"])
        for offload in ("none", "optimizer", "all")
    )
    count = SHAPES["A"].weights
    assert kept.parts["master copies and optimizer"] == pytest.approx(12 * count / 8)
    assert "master copies and optimizer" not in moved.parts and moved.host["optimizer"] == pytest.approx(20 * count / 8)
    assert kept.parts["weights that learn"] == moved.parts["weights that learn"] == pytest.approx(2 * count / 8)
    assert "weights that learn" not in all_.parts and all_.host["weights"] == pytest.approx(2 * count / 8)
    assert kept.speed > moved.speed > all_.speed


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


HUB = ("source: {kind: starter}", "source: {kind: hub, repo: internlm/internlm2-chat-7b}")


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize(
    "changes",
    [
        "train:",
        "runtime: {offload: optimizer}\ntrain:",
        "runtime: {zero_stage: 3}\ntrain:\n  method: full",
        "runtime: {micro_batch_size: 16, gradient_checkpointing: false}\ntrain:\n  method: lora\n  max_tokens: 16384",
    ],
)
def test_every_line_fits_the_terminal(bench, monkeypatch, columns, changes):
    monkeypatch.setenv("COLUMNS", str(columns))
    work = bench.open(HUB, ("train:", changes))
    for said in (told(work, [], 8 if "full" in changes else 1, 12.5), told(work, ["rtx4090"], 1, 0.4)):
        lines = [line for line in said.split("\n") if columns == 100 or "--set" not in line]  # what is typed is not for narrow terminals
        assert max(map(width, lines)) <= columns


def test_a_new_model_is_planned_from_its_recipe(bench):
    sizes = "hidden_size: 256, intermediate_size: 688, num_hidden_layers: 6, num_attention_heads: 4, num_key_value_heads: 4"
    work = bench.open(("source: {kind: starter}", f"source: {{kind: new, {sizes}}}"), ("train:", "train:\n  method: full"))
    (plan,) = plans(work, ["l4"], 1)
    assert plan.setup.shape == replace(STARTER, rank=8)
    assert "Transformers' own step, since all weights learn." in told(work, ["l4"], 1, None)


def test_families_that_the_fast_step_does_not_know_are_planned_with_transformers_own(bench):
    known = {*families.NORM_OFFSETS, *CONVERTED}
    able = [repo for repo, model in models().items() if model.shape.family not in known and not model.shape.experts]
    repo = next(repo for repo in able if not families.missing(models()[repo].shape.model_dump(exclude_none=True)))
    work = bench.open(("source: {kind: starter}", f"source: {{kind: hub, repo: {repo}}}"))
    (plan,) = plans(work, ["h100"], 1)
    assert plan.setup.why_stock == "the fast one does not know the family"
