"""Training on the real stack: methods, ZeRO stages, what is watched, and what is refused."""

import json

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file
from station import history, last_checkpoint, recipe, record, weights

from tunestation.errors import InputError, TunestationError
from tunestation.models.four_bit import keep_weights_in_place

NO_DROPOUT = {"rank": 4, "alpha": 8, "dropout": 0.0}
"""Under ZeRO-3 transformers' own step is taken: it draws other masks, and rounds in other places."""
QUIET = ("evaluate.every_steps=1000", "evaluate.prompts=[]")
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def variant(station, name, **changes):
    """The tiny recipe with results of its own (`runtime` is in no key)."""
    station.write(recipe(name=name, **changes))
    return name


@pytest.fixture(scope="session")
def full(station):
    return station.make("train", "train.method=full", *QUIET)


@pytest.fixture(scope="session")
def lora(station):
    return station.make("train", "train.method=lora", *QUIET)


def learned(trained):
    losses = list(history(trained, "loss").values())
    return losses[0] - losses[-1]


def test_adapters_over_a_4_bit_and_a_16_bit_base_learn_and_hold_only_lora_weights(trained, lora):
    for result in (trained, lora):
        assert learned(result) > 0.3
        (file,) = last_checkpoint(result).glob("*.safetensors")
        assert all(".lora_A." in name or ".lora_B." in name for name in load_file(file))
    assert history(trained, "loss")[1] != history(lora, "loss")[1]


def test_target_modules_that_the_model_has_not_are_told_with_those_that_it_has(station):
    with pytest.raises(InputError) as caught:
        station.make("train", "train.lora.target_modules=[foo, bar]", *QUIET)
    (problem,) = caught.value.problems
    assert problem.what == "no layer of this model is called as train.lora.target_modules says (foo, bar)."
    assert problem.remedy == "Its layers are: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj."


def test_full_training_changes_every_weight(station, full):
    assert learned(full) > 2
    after, before = load_file(last_checkpoint(full) / "model.safetensors"), load_file(station.model / "model.safetensors")
    # a row of the embedding whose token never occurs has no gradient
    assert all((after[name].float() != tensor.bfloat16().float()).any() for name, tensor in before.items())


def test_zero_stages_1_and_2_learn_the_same_bytes_on_one_device(station, trained):
    result = station.make("train", name=variant(station, "zero-1", runtime={"zero_stage": 1}))
    assert weights(result) == weights(trained)


def test_without_zero_the_same_is_learned_within_rounding(station, trained):
    """DeepSpeed reckons the norm to which gradients are cut in another order then."""
    result = station.make("train", name=variant(station, "zero-0", runtime={"zero_stage": 0}))
    assert list(history(result, "loss").values()) == pytest.approx(list(history(trained, "loss").values()), rel=1e-3)


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_zero_3_learns_the_same_within_rounding(station, method):
    quiet = {"every_steps": 1000, "prompts": ["What is 1 and 1?"]}
    changes = {"train": {"method": method, "lora": NO_DROPOUT}, "evaluate": quiet}
    result = station.make("train", name=variant(station, f"zero-3-{method}", **changes, runtime={"zero_stage": 3}))
    other = station.make("train", name=variant(station, f"zero-2-{method}", **changes))
    assert list(history(result, "loss").values()) == pytest.approx(list(history(other, "loss").values()), rel=1e-2)
    (mine,), (yours,) = (last_checkpoint(folder).glob("*model.safetensors") for folder in (result, other))
    mine, yours = load_file(mine), load_file(yours)
    assert {name: weight.shape for name, weight in mine.items()} == {name: weight.shape for name, weight in yours.items()}
    assert max((mine[name].float() - yours[name].float()).abs().max() for name in mine) < 0.03


def test_offload_of_the_optimizer_and_recomputed_activations_change_no_byte(station, trained):
    runtime = {"offload": "optimizer", "gradient_checkpointing": False}
    assert weights(station.make("train", name=variant(station, "offload", runtime=runtime))) == weights(trained)


def test_everything_offloaded_under_zero_3_trains_in_16_bit(station):
    runtime = {"zero_stage": 3, "offload": "all"}
    changes = {"train": {"method": "lora", "lora": NO_DROPOUT}, "evaluate": {"every_steps": 1000, "prompts": []}}
    result = station.make("train", name=variant(station, "all-offloaded", **changes, runtime=runtime))
    other = station.make("train", name=variant(station, "none-offloaded", **changes))
    assert list(history(result, "loss").values()) == pytest.approx(list(history(other, "loss").values()), rel=1e-2)


def test_a_deepspeed_file_of_the_users_is_used(station, trained):
    (station.recipes / "own.json").write_text(json.dumps({"zero_optimization": {"stage": "auto", "offload_optimizer": {"device": "cpu"}}}))
    name = variant(station, "own", runtime={"deepspeed_config": "own.json"})
    assert weights(station.make("train", name=name)) == weights(trained)
    (station.recipes / "own.json").write_text(json.dumps({"zero_optimization": {"stage": 3}, "bf16": {"enabled": False}}))
    with pytest.raises(InputError, match=r"runtime.zero_stage is 2(.|\n)*bf16 is switched off"):
        station.make("train", "train.seed=1", name=name)


@pytest.mark.parametrize("optimizer", ["paged_adamw_32bit", "adamw_8bit"])
def test_an_optimizer_for_gpus_is_refused_on_a_cpu(station, optimizer):
    with pytest.raises(InputError, match=f"'{optimizer}' needs a CUDA GPU.*adamw"):
        station.make("train", f"train.optimizer={optimizer}")


def test_a_loss_that_is_no_number_ends_training_with_its_step_and_a_remedy(station):
    with pytest.raises(TunestationError, match=r"the loss is (nan|inf) at step \d+. Lower train.learning_rate") as caught:
        station.make("train", "train.learning_rate=1e30")
    assert caught.value.exit_code == 1


def test_evaluations_in_between_change_no_byte_of_the_adapter(station, trained):
    assert weights(station.make("train", *QUIET)) == weights(trained)


@torch.no_grad()
def test_a_4_bit_layer_answers_the_same_before_and_after_it_was_evaluated():
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    layer.load_state_dict({"weight": torch.randn(64, 64)})
    layer = layer.to("cpu")
    keep_weights_in_place(layer)
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    before, packed = layer.train()(x), layer.weight.data.clone()
    layer.eval()(x)
    assert torch.equal(layer.weight.data, packed)
    assert torch.equal(layer.train()(x), before)


def test_the_result_tells_losses_sample_answers_and_speed(station, trained):
    told = record(trained)
    steps = told["facts"]["steps"]
    assert steps == len(history(trained, "loss")) == 11
    assert list(told["observed"]["samples"]) == ["0", "10", "11", "2", "4", "6", "8"]
    assert all(len(answers) == 1 for answers in told["observed"]["samples"].values())
    assert sorted(map(int, told["observed"]["held_out_losses"])) == [2, 4, 6, 8, 10, 11]
    assert told["metrics"]["held_out_loss"] == history(trained, "eval_loss")[steps]
    assert told["observed"]["tokens_per_second"] > 0
    assert list((trained / "logs").glob("events.out.tfevents.*"))


def test_no_file_of_a_checkpoint_names_a_folder_of_this_machine(station, trained, full):
    for result in (trained, full):
        texts = {file.name: file.read_text(encoding="utf-8") for file in last_checkpoint(result).glob("*.json")}
        assert texts
        assert [name for name, text in texts.items() if str(station.model.parent) in text] == []


def test_the_newest_checkpoints_and_the_best_are_kept(station):
    # a learning rate so high that the held-out loss does not fall to the end
    high = ("train.learning_rate=0.3", "train.schedule=constant")
    settings = ("train.save_steps=2", "train.keep=1", *high, "train.method=full", "evaluate.prompts=[]")
    result = station.make("train", *settings)
    losses = {int(step): loss for step, loss in record(result)["observed"]["held_out_losses"].items()}
    best = min((2, 4, 6, 8, 10, 11), key=losses.__getitem__)
    assert {path.name for path in (result / "checkpoints").iterdir()} == {f"checkpoint-{step}" for step in {best, 11}}


def test_the_learning_rate_warms_up_and_follows_the_schedule(station):
    rates = {
        name: history(station.make("train", *QUIET, "train.warmup=0.2", "train.epochs=1.9", f"train.schedule={name}"), "learning_rate")
        for name in ("cosine", "constant")
    }
    assert rates["constant"] == pytest.approx({1: 0, 2: 1e-3} | dict.fromkeys(range(3, 11), 2e-3))
    assert rates["cosine"][3] == pytest.approx(2e-3)
    assert rates["cosine"][7] == pytest.approx(1e-3, rel=0.01)
    assert 0 < rates["cosine"][10] < 1.5e-4


def test_a_model_without_a_past_is_trained_from_the_data_alone_and_merged(station):
    model = {"source": {"kind": "new", "tokenizer": {"vocab_size": 300}, **SHAPE}}
    name = variant(station, "fresh", model=model, template="chatml", train={"method": "full", "learning_rate": 3e-3})
    folder = station.make("merge", name=name)
    assert learned(station.make("train", name=name)) > 0.3
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fresh, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert fresh.config.vocab_size == len(tokenizer)
    assert fresh.get_input_embeddings().weight.shape == (len(tokenizer), 64)


def test_gradients_that_stay_where_they_were_made_change_no_byte(station, trained):
    (station.recipes / "loose.json").write_text(json.dumps({"zero_optimization": {"contiguous_gradients": False}}))
    result = station.make("train", name=variant(station, "loose", runtime={"deepspeed_config": "loose.json"}))
    assert weights(result) == weights(trained)
