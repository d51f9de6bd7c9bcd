"""Answers drawn together: each is what it would be alone, and what goes wrong with one does not touch the others."""

import asyncio
import threading
import weakref
from queue import SimpleQueue

import pytest
import torch
from chatting import GREEDY, QUESTIONS, ask, collect, expected
from station import PATIENCE, wait_until

from tunestation.chat.answers import Busy, Ending, Request
from tunestation.chat.engine import Engine
from tunestation.chat.streams import asking
from tunestation.chat.text import GrowingText
from tunestation.recipe.schema import Generation

LONG = Generation(temperature=0, max_new_tokens=200)


def begin(engine, text, generation=GREEDY, held=None, **request):
    """(answer, its events); with `held`, an Event, the model stands still after each piece until that is set."""
    events = SimpleQueue()

    def sink(event):
        events.put(event)
        assert held is None or held.wait(PATIENCE)

    return engine.submit(Request(tuple(ask(text)), generation, **request), sink), events


def whole(events):
    pieces = []
    while isinstance(event := events.get(timeout=PATIENCE), str):
        pieces.append(event)
    return "".join(pieces), event


@pytest.fixture
def own(pair):
    """An engine that a test may break: two answers at a time, one more may wait."""
    engine = Engine(pair, parallel=2, waiting=1)
    yield engine
    engine.close()


@pytest.fixture
def fail(own):
    """Lets the model raise `error` whenever `condition(ids)` holds."""

    def arm(error, condition):
        def hook(_module, _args, given):
            if condition(given["input_ids"]):
                raise error

        return own.model.register_forward_pre_hook(hook, with_kwargs=True)

    return arm


def test_answers_that_begin_while_others_run_are_what_they_would_be_alone(engine):
    lengths = [3, 30, 8, 20, 50, 1]
    asked = [(question, tokens, base) for question in QUESTIONS for tokens in lengths for base in (False, True)]
    running = [(one, begin(engine, one[0], LONG.model_copy(update={"max_new_tokens": one[1]}), base=one[2])[1]) for one in asked]
    found = {one: whole(events)[0] for one, events in running}
    assert found == {one: expected(engine, one[0], one[2], one[1]) for one in asked}


def test_a_seed_draws_the_same_answer_in_company_as_alone(engine):
    sampled = Generation(temperature=1.0, top_k=50, top_p=0.9, max_new_tokens=20)
    alone = [collect(engine.stream(Request(tuple(ask(question)), sampled, seed=7)))[0] for question in QUESTIONS]
    together = [begin(engine, question, sampled, seed=7)[1] for question in QUESTIONS]
    assert [whole(events)[0] for events in together] == alone


def test_a_stop_text_ends_an_answer_before_it_and_is_never_shown_in_part(engine):
    text = expected(engine, "Hi", tokens=40)
    stop = text[7:11]
    pieces = list(engine.stream(Request(tuple(ask("Hi")), LONG, stop=("never said", stop))))
    assert "".join(pieces) == text[: text.index(stop)]
    _, ending = collect(engine.stream(Request(tuple(ask("Hi")), LONG, stop=(stop,))))
    assert ending.reason == "stop"
    assert ending.completion_tokens < 40


def test_a_text_that_only_begins_like_a_stop_text_is_shown_in_the_end(engine):
    text = expected(engine, "Hi")
    assert expected(engine, "Hi", stop=(text[-1] + "never said",)) == text


def test_a_character_whose_bytes_are_incomplete_is_not_shown_until_it_is_whole(engine):
    ids = engine.tokenizer("蜘蛛")["input_ids"]  # not in the vocabulary: one token a byte
    assert len(ids) >= 5
    growing = GrowingText(engine.tokenizer)
    assert [piece for token in ids if (piece := growing.add(token))] == ["蜘", "蛛"]
    assert growing.rest() == ""


def test_text_that_ends_within_a_character_is_handed_out_in_the_end(engine):
    ids = engine.tokenizer("Hi 蜘")["input_ids"][:-1]
    growing = GrowingText(engine.tokenizer)
    assert "".join(growing.add(token) for token in ids) + growing.rest() == "Hi \ufffd"


def test_more_questions_than_may_wait_are_refused_and_the_next_is_answered_once_there_is_room(own):
    held = threading.Event()
    running = [begin(own, "Hi", LONG, held) for _ in range(3)]
    with pytest.raises(Busy, match=r"questions are waiting already\. Try again in a moment"):
        begin(own, "Hi", LONG)
    for answer, _ in running:
        answer.cancel()
    held.set()
    assert [whole(events)[1].reason for _, events in running] == ["cancelled"] * 3
    assert expected(own, "Hi")


def test_a_question_that_waits_no_longer_has_its_place_before_the_model_has_read_it(own):
    held, loads = threading.Event(), []
    _, first = begin(own, "Hi", GREEDY, held)
    first.get(timeout=PATIENCE)
    _, second = begin(own, "Hi")
    own.model.register_forward_pre_hook(lambda *_: loads.append(own.scheduler.load()))
    held.set()
    for events in (first, second):
        whole(events)
    assert loads[0] == (2, 0)  # the next token of the first, while the second is to be read after it


def test_who_leaves_while_the_question_is_tokenised_leaves_no_answer_running(own, monkeypatch):
    tokenising, left, answers = threading.Event(), threading.Event(), []
    submit = own.submit

    def slow(*given):
        tokenising.set()
        assert left.wait(PATIENCE)
        answers.append(submit(*given))
        return answers[-1]

    async def leave():
        async with asking(own, {"": Request(tuple(ask("Hi")), LONG)}):
            pass

    async def leaving():
        task = asyncio.create_task(leave())
        await asyncio.to_thread(tokenising.wait, PATIENCE)
        task.cancel()
        await asyncio.wait([task])
        left.set()

    monkeypatch.setattr(own, "submit", slow)
    asyncio.run(leaving())
    wait_until(lambda: answers)
    wait_until(lambda: answers[0].cancelled)


def test_a_cancelled_answer_keeps_what_was_said(engine):
    held = threading.Event()
    answer, events = begin(engine, "Hi", LONG, held)
    first = events.get(timeout=PATIENCE)
    answer.cancel()
    held.set()
    rest, ending = whole(events)
    assert (ending.reason, expected(engine, "Hi", tokens=200).startswith(first + rest)) == ("cancelled", True)
    assert ending.completion_tokens < 200


def test_out_of_memory_ends_the_longest_answer_and_the_others_go_on_as_if_nothing_had_happened(own, fail):
    wanted = expected(own, "Hi")
    hook = fail(torch.OutOfMemoryError("CUDA out of memory."), lambda ids: ids.numel() > 100)
    _, short = begin(own, "Hi")
    _, long = begin(own, "legs " * 150)
    text, ending = whole(long)
    assert (text, ending.reason) == ("", "failed")
    assert str(ending.error).startswith("Memory ran out after ")
    assert whole(short)[0] == wanted
    hook.remove()
    assert own.scheduler.failure is None


def test_out_of_memory_in_the_middle_of_a_long_answer_leaves_what_was_said(own, fail):
    steps = iter(range(1000))
    hook = fail(torch.OutOfMemoryError("CUDA out of memory."), lambda ids: next(steps) == 10)
    text, ending = collect(own.stream(Request(tuple(ask("Hi")), GREEDY)))
    hook.remove()
    assert (ending.reason, ending.completion_tokens) == ("failed", 10)
    assert expected(own, "Hi").startswith(text) and text


def test_what_the_failed_step_held_is_free_when_the_gpu_s_memory_is_tidied(own, monkeypatch):
    held, alive = [], []

    def fail(*_):
        tensor = torch.zeros(1)
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(held[-1]() is not None))
    hook = own.model.register_forward_pre_hook(fail)
    assert whole(begin(own, "Hi")[1])[1].reason == "failed"
    hook.remove()
    assert expected(own, "Hi")
    assert alive == [False]


def test_an_error_of_the_model_ends_its_answers_in_words_and_the_engine_still_answers(own, fail, capsys):
    hook = fail(RuntimeError("device-side assert"), lambda ids: True)
    endings = [whole(begin(own, "Hi")[1])[1] for _ in range(2)]
    assert [str(ending.error) for ending in endings] == ["The model failed: RuntimeError: device-side assert"] * 2
    assert own.scheduler.failure == "RuntimeError: device-side assert"
    assert "device-side assert" in capsys.readouterr().err
    hook.remove()
    assert expected(own, "Hi")
    assert own.scheduler.failure is None


def test_closing_ends_every_answer(pair):
    engine = Engine(pair)
    _, events = begin(engine, "Hi", LONG)
    events.get(timeout=PATIENCE)
    engine.close()
    assert isinstance(whole(events)[1], Ending)
    assert not [thread for thread in threading.enumerate() if thread is engine.scheduler._thread]
