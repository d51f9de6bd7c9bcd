"""`invoke plan`: against what was measured, and what it says."""

import json
import re
from dataclasses import replace

import pytest
from recipes_for_tests import Bench

from tunestation.app import plan_recipe
from tunestation.errors import InputError
from tunestation.pipeline.stage import keys
from tunestation.planning import _told, config_of, plans, told
from tunestation.settings import PROJECT
from tunestation.training import cards, memory, pace
from tunestation.training.learned import learned
from tunestation.training.setup import Setup

SHAPES = {
    "internlm2-7b": memory.Shape(4096, 14336, 32, 32, 8, 128, 92544, False, 64),
    "internlm2-1.8b": memory.Shape(2048, 8192, 24, 16, 8, 128, 92544, False, 64),
}
GIB = 2**30


def measured():
    """Rows of our own fast step in all committed results of GPUs: every row that tells what was kept in memory."""
    for path in sorted((PROJECT / "bench" / "results").glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")).get("rows", []):
            if "kept" in row and "peak_gib" in row:
                label = f"{path.stem}/{row['case']}{'+zero' if row['deepspeed'] else ''}"
                yield pytest.param(row, id=label)


def choice_of(row, layers):
    """The choice that a row tells in words."""
    patterns = (r"(\d+) of \d+ layers computed", r"gate and up of (\d+)", r"weights of (\d+) layers kept", r"products' inputs of (\d+)")
    again, part, ready, more, away = (
        int(found[1]) if (found := re.search(pattern, row["kept"])) else 0 for pattern in (*patterns, r"host.*weights of (\d+) layers")
    )
    host = memory.Host("the embedding" in row["kept"], "layers' inputs" in row["kept"], away)
    return memory.Choice(again, part, layers - again - part, ready, memory.LITTLE_LOGITS if again else memory.MANY_LOGITS, host, more)


@pytest.mark.parametrize("row", measured())
def test_memory_is_planned_within_8_percent_and_time_within_20(row):
    shape = replace(SHAPES[row["shape"]], rank=row["rank"])
    choice, tokens = choice_of(row, shape.layers), row["sequences"] * row["length"]
    optimizer = {"paged": "paged_adamw_32bit"}.get(row["optimizer"], "adamw")
    gradients = learned(optimizer, 2 if row["deepspeed"] else None, "optimizer" if row.get("offload") else "none")
    parts = memory.components(shape, choice, tokens, row["base"], gradients)
    assert sum(parts.values()) / GIB == pytest.approx(row["peak_gib"], rel=0.08)
    card, documents = cards.CARDS["h200"], row["documents"]
    labelled, span = (tokens // 2, 330) if documents else (tokens, row["length"])
    seconds = pace.micro_batch(shape, card, choice, tokens, labelled, span, row["base"], row["dropout"] > 0)
    planned = tokens / (seconds + pace.optimizer_step(shape.adapters, card, "optimizer" if row.get("offload") else "none"))
    if row.get("host_bound"):  # no arithmetic knows how slow a machine's processor is: the plan is what the card would do
        assert planned > row["tokens_per_second"]
    else:
        assert planned == pytest.approx(row["tokens_per_second"], rel=0.2)


def as_recipes_train():
    """Rows under ZeRO-2 of the latest runs, whose choices were made by the present rules."""
    latest = ("2026-11-30-h200-gated/", "2026-11-30-h200-dropout/", "2026-12-01")
    return [row for row in measured() if row.values[0]["deepspeed"] and row.id.startswith(latest)]


@pytest.mark.parametrize("row", as_recipes_train())
def test_what_a_plan_chooses_by_itself_is_as_near_to_what_was_measured(row):
    shape, tokens, card = replace(SHAPES[row["shape"]], rank=row["rank"]), row["sequences"] * row["length"], cards.CARDS["h200"]
    optimizer, offload = {"paged": "paged_adamw_32bit"}.get(row["optimizer"], "adamw"), "optimizer" if row["offload"] else "none"
    a_row = (row["dropout"], row["length"], row["sequences"], row["sequences"])
    setup = Setup(shape, "qlora", row["base"], True, optimizer, *a_row, 2, offload, None, 1, True)
    choice = setup.choose(tokens, row["gib"] / (1 - memory.SPARE) if row["gib"] else card.memory)
    assert sum(setup.components(choice, tokens).values()) / GIB == pytest.approx(row["peak_gib"], rel=0.08)
    planned = tokens / setup.step_seconds(card, choice, tokens, 330 if row["documents"] else row["length"])
    assert planned == pytest.approx(row["tokens_per_second"], rel=0.2) or (row.get("host_bound") and planned > row["tokens_per_second"])


@pytest.mark.parametrize("gib", [3, 6, 8, 12, 16, 21, 22, 24, 48, 80, 141])
@pytest.mark.parametrize("base", ["nf4", "bf16", "fp8"])
@pytest.mark.parametrize(
    "gradients",
    [learned("adamw", None), learned("adamw", 0), learned("adamw", 2, accumulates=True), learned("adamw", 2, offload="optimizer")],
)
def test_what_is_chosen_fits_and_more_memory_never_computes_more_again(gib, base, gradients):
    shape = SHAPES["internlm2-7b"]
    frozen = memory.base_bytes(shape, base) + memory.HALF * shape.embedding + memory.WORKSPACE + round(gradients.resident * shape.adapters)
    free = gib * GIB - frozen
    choice = memory.choose(shape, 4096, free, None, base, gradients)
    assert len(choice.levels) == 32 and choice.dense <= (0 if base == "fp8" else 32)
    smallest = memory.Choice(32, 0, 0, 0, memory.LITTLE_LOGITS, memory.Host(True, True, 0 if base == "fp8" else 32))
    needed = sum(memory.components(shape, choice, 4096, base, gradients).values())
    assert needed <= gib * GIB or choice == smallest
    assert choice.dense < 2 or choice.host == memory.Host()  # no host memory while there is room for what only makes it faster
    more = memory.choose(shape, 4096, free + 4 * GIB, None, base, gradients)
    assert more.host.weights <= choice.host.weights
    if more.host == choice.host:
        assert (more.input, more.attention) <= (choice.input, choice.attention) or more.input < choice.input
    assert memory.choose(shape, 4096, free, True, base, gradients).input == 32
    assert memory.choose(shape, 4096, free, False, base, gradients).everything == 32


def test_host_memory_is_used_only_if_nothing_fits_else_and_what_costs_least_first():
    shape, gradients, told = SHAPES["internlm2-7b"], learned("adamw", 2, offload="optimizer"), []
    frozen = memory.base_bytes(shape, "nf4") + memory.HALF * shape.embedding + memory.WORKSPACE + 2 * shape.adapters
    for gib in (8, 6, 5.5, 4.9, 2.5):
        told.append(memory.choose(shape, 2048, round(gib * GIB) - frozen, None, "nf4", gradients).host)
    assert told[:3] == [memory.Host(), memory.Host(True), memory.Host(True, True)]
    assert told[3].embedding and told[3].inputs and 3 <= told[3].weights < 8
    assert told[4].weights > 24


@pytest.mark.parametrize("gib", [2.5, 5, 8, 24])
def test_what_waits_already_changes_no_choice(gib):
    shape, gradients = SHAPES["internlm2-7b"], learned("adamw", 2)
    frozen = memory.base_bytes(shape, "nf4")
    free = round(gib * GIB) - frozen - memory.HALF * shape.embedding
    choice = memory.choose(shape, 2048, free, None, "nf4", gradients)
    for waits in (memory.Host(True), memory.Host(True, True), memory.Host(True, True, 12)):
        now = free + memory.freed(shape, waits, frozen // shape.layers)
        assert memory.choose(shape, 2048, now, None, "nf4", gradients, waits=waits) == choice


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


HUB = ("source: {kind: starter}", "source: {kind: hub, repo: internlm/internlm2-chat-7b}")
MEMORY_SHORT = ("train:", "train:\n  max_tokens: 8192")


def test_every_known_card_is_told_the_smallest_that_suffices_first(bench):
    found = plans(bench.open(HUB, MEMORY_SHORT), [], 1)
    assert {plan.card.name for plan in found} == set(cards.CARDS)
    sizes = [plan.card.memory for plan in found if plan.fits]
    assert sizes == sorted(sizes)
    assert all(plan.needed <= plan.card.memory for plan in found if plan.fits)


def test_one_card_is_told_with_its_memory_by_component_and_its_cost(bench):
    said = told(bench.open(HUB), ["rtx4090"], 1, 0.4)
    assert re.search(r"^rtx4090 +\d+\.\d of 23.5 +yes", said, re.M)
    assert all(part in said for part in ("frozen base", "embedding and head", "adapters and optimizer", "activations and gradients"))
    assert "15.5 GB to download" in said
    assert "Time and cost of the whole are known when 'invoke prepare small' has counted the steps." in said


@pytest.mark.parametrize("same", [True, False])
def test_steps_are_known_from_a_lock_of_the_same_recipe_and_versions(bench, same):
    work = bench.open()
    key = keys(work.stages)["prepare"] if same else "0" * 64
    lock = {"stages": {"prepare": {"key": key, "facts": {"packs": 40, "tokens": 4000, "conversations": 50}}}}
    said = told(replace(work, lock=lock), ["rtx4090"], 1, 0.4)
    assert re.search(r"^\d+ steps\.$", said, re.M) if same else "known when 'invoke prepare small' has counted the steps." in said
    assert ("cost" in said.split("\n")[0]) is same


def test_a_card_without_8_bit_products_is_left_out_of_a_plan_for_an_8_bit_base(bench):
    names = {plan.card.name for plan in plans(bench.open(HUB, ("train:", "train:\n  base: {type: fp8}")), [], 1)}
    assert "h100" in names and "rtx3090" not in names


def test_the_starters_shape_is_read_from_its_folder(bench):
    assert config_of(bench.open())["num_hidden_layers"] == 6


@pytest.mark.parametrize(
    ("changes", "told_as"),
    [
        ([("source: {kind: starter}", "source: {kind: hub, repo: someone/something}")], "not known before it is fetched.*invoke fetch"),
    ],
)
def test_what_cannot_be_planned_is_told(bench, changes, told_as):
    with pytest.raises(InputError, match=told_as):
        plans(bench.open(*changes), ["h200"], 1)


def test_a_card_or_a_count_that_cannot_be_is_told(bench):
    with pytest.raises(InputError, match=r"rtx3090 has no products of 8-bit floats. Set train.base.type to nf4"):
        plans(bench.open(HUB, ("train:", "train:\n  base: {type: fp8}")), ["rtx3090"], 1)
    with pytest.raises(InputError, match="0 is no count of GPUs"):
        plans(bench.open(HUB), ["h200"], 0)



def test_weights_that_come_from_host_memory_take_the_time_of_the_link():
    shape, card = SHAPES["internlm2-7b"], cards.CARDS["rtx4090"]
    smallest = memory.Choice(32, 0, 0, 0, memory.LITTLE_LOGITS, memory.Host(True, True, 32))
    assert pace.micro_batch(shape, card, smallest, 128, 128, 128, "nf4") >= 2 * memory.base_bytes(shape, "nf4") / 25e9
    kept = replace(smallest, host=memory.Host())
    assert pace.micro_batch(shape, card, smallest, 8192, 8192, 2048, "nf4") == pace.micro_batch(shape, card, kept, 8192, 8192, 2048, "nf4")


def test_host_memory_is_told_where_some_is_needed(bench):
    said = told(bench.open(HUB, ("train:", "runtime: {offload: optimizer}\ntrain:")), ["rtx4090"], 1, None)
    assert "host memory" in said and "optimizer" in said


@pytest.mark.parametrize("config", [{"model_type": "phi3"}, {"family": "phi3"}])
def test_packed_projections_are_under_one_adapter_each(config):
    plain = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 500}
    single, packed = memory.Shape.of(plain, 8), memory.Shape.of(plain | config, 8)
    assert single.adapters - packed.adapters == 2 * 8 * (2 * 64 + 64)
    assert packed.tails == 4 * 8 and single.linear == packed.linear


def test_no_plan_pretends_that_a_mixture_of_experts_is_a_plain_model():
    with pytest.raises(InputError, match="no plans are made for mixtures of experts"):
        _told({"num_local_experts": 8, "hidden_size": 4096})


def adapting(*names):
    return ("lora: {rank: 8}", f"lora: {{rank: 8, target_modules: [{', '.join(names)}]}}")


def test_a_list_of_layers_is_planned_as_it_is(bench):
    (every,), (few,) = (plans(bench.open(HUB, *change), ["rtx4090"], 1) for change in ([], [adapting("q_proj", "v_proj")]))
    assert few.setup.shape.adapters == 32 * 8 * (2 * 4096 + 4096 + 1024)
    assert few.parts["adapters and optimizer"] == 14 * few.setup.shape.adapters < 0.3 * every.parts["adapters and optimizer"]
    said = told(bench.open(HUB, adapting("q_proj", "v_proj", "wqkv")), ["rtx4090"], 1, None)
    assert "Adapters of 3.4 million weights, on q_proj, v_proj, wqkv." in said
    assert "The model has no linear layer wqkv (train.lora.target_modules)." in said
    assert "Adapters of" not in told(bench.open(HUB), ["rtx4090"], 1, None)


def test_a_list_that_names_no_layer_is_refused(bench):
    with pytest.raises(InputError, match=r"names no linear layer of the model: wqkv, wo.*Its layers are called q_proj, k_proj"):
        plans(bench.open(HUB, adapting("wqkv", "wo")), ["h200"], 1)


def test_an_adapted_head_takes_transformers_own_step(bench):
    work = bench.open(HUB, adapting("q_proj", "lm_head"))
    assert plans(work, ["h200"], 1)[0].setup.shape.adapters == 32 * 8 * 2 * 4096 + 8 * (92544 + 4096)
    assert "Transformers' own step, since the head or the embedding is adapted." in told(work, ["h200"], 1, None)


def test_what_layers_are_called_is_told_where_it_is_not_known(bench):
    hub = ("source: {kind: starter}", "source: {kind: hub, repo: THUDM/chatglm3-6b}")
    work = bench.open(hub, adapting("q_proj"))
    assert plans(work, ["h200"], 1)[0].setup.why_stock == "the fast one does not know the family"
    said = told(work, ["h200"], 1, None)
    assert "Planned as if all linear layers got adapters: what those of 'glm' are called is not known here." in said


def test_the_adapter_that_training_begins_with_tells_which_layers_it_is_on(bench):
    folder = bench.folder / "home" / "models" / "adapters" / "coach"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    named = ("repo: internlm/internlm2-chat-7b}", "repo: internlm/internlm2-chat-7b}\n  adapter: adapters/coach")
    for pattern, inputs in ((r".*\.[qv]_proj", 2 * 4096 + 4096 + 1024), (["o_proj"], 2 * 4096)):
        (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 16, "target_modules": pattern}), encoding="utf-8")
        assert plans(bench.open(HUB, named), ["h200"], 1)[0].setup.shape.adapters == 32 * 8 * inputs
    for more in ({"use_dora": True}, {"bias": "lora_only"}, {"modules_to_save": ["norm"]}, {"lora_bias": True}):
        (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "target_modules": ["o_proj"]} | more), encoding="utf-8")
        assert plans(bench.open(HUB, named), ["h200"], 1)[0].setup.why_stock == "more than A and B of the adapter learns"
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 16, "target_modules": "("}), encoding="utf-8")
    with pytest.raises(InputError, match="is no regular expression"):
        plans(bench.open(HUB, named), ["h200"], 1)


def test_a_head_that_its_class_ties_is_counted_once():
    gemma = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 500}
    assert memory.Shape.of(gemma | {"model_type": "gemma"}, 8).embedding == 500 * 64


def test_a_batch_that_the_gpus_cannot_share_is_told_with_a_micro_batch_that_they_can(bench):
    wide = bench.open(HUB, ("train:", "runtime: {micro_batch_size: 16}\ntrain:"))
    with pytest.raises(InputError, match=r"--gpus: .* 16 cannot be shared by 4 GPUs .* of 16. Add --set runtime.micro_batch_size=4."):
        plans(wide, ["h200"], 4)
    with pytest.raises(InputError, match=r"shared by 3 GPUs .* Give another count, or another batch\."):
        plans(wide, ["h200"], 3)


def test_what_the_project_ships_is_not_downloaded_and_small_things_are_told_in_small_units(bench):
    said = told(bench.open(), ["h200"], 1, None)
    assert re.search(r"^The model is \d+ MB, and as much again merged.$", said, re.M)
    assert re.search(r"^h200 .* \d+ ms ", said, re.M) and "a step" in said.split("\n")[0]


def test_a_card_is_known_by_its_name_as_it_is_written(bench, capsys):
    path = bench.recipe()
    plan_recipe(str(path), "RTX 4090")
    assert re.search(r"^rtx4090 ", capsys.readouterr().out, re.M)
    with pytest.raises(InputError, match="Choose from: rtx3060"):
        plan_recipe(str(path), "gtx 1080")


@pytest.mark.parametrize("repo", ["THUDM/chatglm3-6b", "baichuan-inc/Baichuan-13B-Chat"])
def test_models_that_become_a_family_which_the_fast_step_does_not_know_take_transformers_own(bench, repo):
    work = bench.open(("source: {kind: starter}", f"source: {{kind: hub, repo: {repo}}}"))
    assert plans(work, ["h200"], 1)[0].setup.why_stock == "the fast one does not know the family"
