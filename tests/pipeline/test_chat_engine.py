"""One model, loaded once, that answers: streaming, stopping, batches, long conversations, broken folders."""

import io
import json
import shutil
import threading
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_tiny_model

from tunestation.chat.engine import Engine
from tunestation.chat.generate import batch_answers, prompt_ids, stop_ids
from tunestation.errors import InputError
from tunestation.recipe.schema import Generation

GREEDY = Generation(temperature=0, max_new_tokens=40)
SAMPLED = Generation(temperature=1.0, top_p=0.9, top_k=50, repetition_penalty=1.2, max_new_tokens=30)
QUESTIONS = ["Hi", "What is your name?", "天空为什么是蓝色的？", "Please write one short sentence about the weather of today, and more."]


def ask(text, system=None):
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]


def whole(engine, messages, generation=GREEDY, seed=None):
    return list(engine.reply(messages, generation, seed))[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def engine(folder):
    return Engine(folder)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def set_generation_config(folder, **changes):
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_streamed_answer_grows_into_what_transformers_generates(engine, question):
    texts = list(engine.reply(ask(question), GREEDY))
    ids = torch.tensor([prompt_ids(engine.tokenizer, ask(question))])
    reference = engine.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)[0, ids.shape[1] :]
    assert texts[-1] == engine.tokenizer.decode(reference, skip_special_tokens=True)
    assert len(texts) > 10
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


def test_a_character_whose_bytes_are_incomplete_is_not_shown_until_it_is_whole(engine):
    ids = engine.tokenizer("蜘蛛")["input_ids"]  # not in the vocabulary: one token a byte
    assert len(ids) >= 5
    assert list(engine._texts(iter(ids))) == ["蜘", "蜘蛛"]


def test_the_same_seed_draws_the_same_answer_and_leaves_the_global_random_state_alone(engine):
    state = torch.get_rng_state()
    first, again, other = (whole(engine, ask("Hi"), SAMPLED, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(state, torch.get_rng_state())


def test_sampling_draws_from_the_distribution_that_transformers_computes(engine):
    ids = torch.tensor([prompt_ids(engine.tokenizer, ask("Hi"))])
    settings = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.2, "max_new_tokens": 30}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        reference = engine.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :]
    assert whole(engine, ask("Hi"), SAMPLED, seed=7) == engine.tokenizer.decode(reference, skip_special_tokens=True)


def test_an_end_id_of_the_generation_config_ends_an_answer_beside_the_tokenizer_s_own(engine, copy):
    prompt = torch.tensor([prompt_ids(engine.tokenizer, ask("Hi"))])
    fourth = engine.model.generate(prompt, do_sample=False, max_new_tokens=4)[0, -1].item()
    set_generation_config(copy, eos_token_id=[fourth])
    stopping = Engine(copy)
    assert stopping.stop == sorted([fourth, stopping.tokenizer.eos_token_id])
    answers = stopping.reply(ask("Hi"), GREEDY)
    pieces = []
    while True:
        try:
            pieces.append(next(answers))
        except StopIteration as end:
            reason = end.value
            break
    assert reason == "stop"
    assert pieces[-1] == whole(engine, ask("Hi"), Generation(temperature=0, max_new_tokens=3))
    assert batch_answers(stopping.model, stopping.tokenizer, [ask("Hi")], 40) == [pieces[-1]]


def test_a_caller_that_stops_iterating_stops_the_model(engine):
    calls = []
    hook = engine.model.register_forward_hook(lambda *_: calls.append(1))
    threads = threading.active_count()
    answer = engine.reply(ask("Hi"), GREEDY)
    next(answer)
    seen = len(calls)
    answer.close()
    hook.remove()
    assert len(calls) == seen < 10
    assert threading.active_count() == threads


def test_an_error_inside_the_model_reaches_the_caller_and_the_engine_still_answers(engine):
    def fail(*_):
        raise RuntimeError("no memory left")

    hook = engine.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no memory left"):
        whole(engine, ask("Hi"))
    hook.remove()
    assert whole(engine, ask("Hi"))


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_answers_of_a_batch_equal_those_of_one_at_a_time(engine, batch_size):
    conversations = [ask(question) for question in QUESTIONS] + [ask(QUESTIONS[1], "You are kind.")]
    one_by_one = [whole(engine, messages) for messages in conversations]
    assert len(set(one_by_one)) == len(one_by_one)
    assert batch_answers(engine.model, engine.tokenizer, conversations, 40, batch_size) == one_by_one


def test_a_question_of_a_batch_that_fills_the_context_is_named(engine):
    with pytest.raises(InputError, match=r"'legs legs .* tokens long; the model takes 512"):
        batch_answers(engine.model, engine.tokenizer, [ask("Hi"), ask("legs " * 600)], 10)


def test_a_batch_is_greedy_whatever_the_folder_s_generation_config_says(engine, copy):
    set_generation_config(copy, do_sample=True, temperature=5.0, top_k=3, repetition_penalty=3.0, no_repeat_ngram_size=1, max_length=20)
    other = Engine(copy)
    conversations = [ask(question) for question in QUESTIONS]
    expected = batch_answers(engine.model, engine.tokenizer, conversations, 40)
    assert batch_answers(other.model, other.tokenizer, conversations, 40) == expected


def test_a_model_in_training_answers_without_dropout_and_is_put_back_with_the_random_state(folder):
    base = Engine(folder)
    expected = batch_answers(base.model, base.tokenizer, [ask(question) for question in QUESTIONS], 20)
    model = get_peft_model(base.model, LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.train()
    model.base_model.model.model.norm.eval()
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    assert batch_answers(model, base.tokenizer, [ask(question) for question in QUESTIONS], 20) == expected
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(state, torch.get_rng_state())
    assert stop_ids(model, base.tokenizer) == base.stop


def conversation(turns):
    messages = ask("What is your name?", "You are kind.")[:1]
    for number in range(turns):
        messages += [{"role": "user", "content": f"Question {number}: how many legs?"}, {"role": "assistant", "content": "Eight legs."}]
    return messages


def test_the_oldest_turns_go_when_a_conversation_outgrows_the_context(engine):
    messages = [*conversation(30), *ask("What is your name?")]
    kept, dropped = engine.fit(messages, 100)
    assert 0 < dropped < 30
    assert kept == [messages[0], *messages[1 + 2 * dropped :]]
    assert len(prompt_ids(engine.tokenizer, kept)) <= engine.context - 100
    assert len(prompt_ids(engine.tokenizer, [messages[0], *messages[2 * dropped - 1 :]])) > engine.context - 100


def test_a_short_conversation_is_kept_whole_also_when_the_longest_answer_exceeds_the_context(engine):
    messages = [*conversation(2), *ask("What is your name?")]
    assert engine.fit(messages, 10_000) == (messages, 0)
    assert whole(engine, messages, Generation(temperature=0, max_new_tokens=10_000))


def test_a_single_message_longer_than_the_context_is_refused_in_words(engine):
    with pytest.raises(InputError, match=r"with the system text is \d+ tokens long; 412 of the model's 512"):
        engine.fit(ask("legs " * 600, "You are kind."), 100)
    with pytest.raises(InputError, match="tokens long; the model takes 512"):
        next(engine.reply(ask("legs " * 600), GREEDY))


def test_a_model_saved_in_bfloat16_or_float16_answers_in_bfloat16(folder, tmp_path):
    for dtype in (torch.bfloat16, torch.float16):
        saved = Engine(folder)
        saved.model.to(dtype).save_pretrained(tmp_path / str(dtype))
        saved.tokenizer.save_pretrained(tmp_path / str(dtype))
        loaded = Engine(tmp_path / str(dtype))
        assert loaded.model.dtype == torch.bfloat16
        assert whole(loaded, ask("Hi"))
    assert Engine(folder).model.dtype == torch.float32


def test_a_missing_folder_is_named_with_the_next_step(tmp_path):
    with pytest.raises(InputError, match=r"no-model: There is no model here.*invoke reproduce"):
        Engine(tmp_path / "no-model")


@pytest.mark.parametrize("gone", ["model.safetensors", "tokenizer.json"])
def test_a_folder_without_weights_or_tokenizer_is_refused(copy, gone):
    (copy / gone).unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        Engine(copy)


def test_truncated_weights_are_refused(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match="cannot be loaded"):
        Engine(copy)


def test_code_in_the_folder_is_never_run(copy, tmp_path, monkeypatch):
    (copy / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((copy / "config.json").read_text())
    own = {"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(InputError, match="custom code"):
        Engine(copy)
    assert not (tmp_path / "ran").exists()
