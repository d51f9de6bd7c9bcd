"""Asking on the chat page, as a person does in headless Chromium."""

import re

import pytest
from browsing import (
    CHROMIUM,
    EXAMPLE,
    answers,
    box,
    change,
    finished,
    first_words,
    open_list,
    open_window,
    questions,
    send,
    shorten_answers,
    status,
    wait_for_words,
)
from chatting import Served, ask, idle
from gradio.queueing import ProcessCompletedMessage, Queue
from playwright.sync_api import expect

from tunestation.chat.answers import Request
from tunestation.chat.engine import Engine
from tunestation.chat.main import ChatJob, _app
from tunestation.recipe.schema import Generation

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}: apt-get install chromium")


def test_a_person_asks_and_is_answered_with_nothing_but_this_machine_involved(window, person, alone):
    expect(window).to_have_title("Career coach · 职场教练")
    expect(window.get_by_text("Loaded in")).to_contain_text("base, 0.1 million parameters, float32 on CPU")
    shorten_answers(window, 12)
    send(window, "你好, who are you?")
    finished(window)
    expect(answers(window)).to_contain_text(first_words(alone, "你好, who are you?", tokens=12))
    expect(status(window)).to_contain_text(re.compile(r"12 tokens, [\d.]+ a second · Cut at its longest length"))
    for width in (1200, 390):
        window.set_viewport_size({"width": width, "height": 800})
        assert window.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert person.hosts == {"127.0.0.1"}
    assert person.complaints == []


def test_a_setting_holds_that_is_changed_as_soon_as_it_is_seen(person, server):
    """However late the browser is with its frames."""
    person.add_init_script("const frame = requestAnimationFrame; window.requestAnimationFrame = call => frame(() => setTimeout(call, 300))")
    window = open_window(person, server.url)
    shorten_answers(window, 5)
    window.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    send(window, "Hi")
    finished(window)
    expect(status(window)).to_contain_text("5 tokens")


def test_an_example_of_the_recipe_is_asked_with_one_click(window, alone):
    shorten_answers(window, 5)
    window.get_by_role("button", name=EXAMPLE).click()
    expect(questions(window)).to_contain_text(EXAMPLE)
    finished(window)
    expect(answers(window)).to_contain_text(first_words(alone, EXAMPLE, tokens=5))


def test_stop_keeps_what_was_said_and_the_next_question_is_answered(window):
    send(window, "Please write.")
    wait_for_words(window)
    window.locator("#box .stop-button").click()
    finished(window)
    expect(status(window)).to_contain_text("Stopped.")
    stopped = answers(window).inner_text()
    shorten_answers(window, 5)
    send(window, "Again")
    finished(window)
    expect(answers(window)).to_have_count(2)
    assert answers(window).first.inner_text() == stopped


def test_the_next_question_need_not_wait_until_the_browser_hears_of_the_end_of_an_answer(window, monkeypatch):
    shorten_answers(window, 5)
    told = Queue.send_message
    monkeypatch.setattr(Queue, "send_message", lambda *message: isinstance(message[-1], ProcessCompletedMessage) or told(*message))
    for question in ("Hi", "What is your name?", "Again"):
        send(window, question)
        finished(window)
    window.get_by_role("button", name="Retry").click()
    finished(window)
    expect(answers(window)).to_have_count(3)


def test_retry_answers_again_and_clear_starts_anew(window):
    shorten_answers(window, 5)
    send(window, "Hi")
    finished(window)
    shorten_answers(window, 10)
    window.get_by_role("button", name="Retry").click()
    expect(status(window)).to_contain_text("10 tokens")
    finished(window)
    expect(answers(window)).to_have_count(1)
    window.get_by_role("button", name="Clear").click()
    expect(answers(window)).to_have_count(0)
    expect(window.get_by_role("button", name=EXAMPLE)).to_be_visible()


def test_an_edited_question_is_asked_again_and_what_came_after_it_goes(window, alone):
    shorten_answers(window, 12)
    for question in ("Hi", "What is your name?"):
        send(window, question)
        finished(window)
    window.get_by_role("button", name="Edit").first.click()
    window.locator("#tuned textarea").fill("天空为什么是蓝色的？")
    window.get_by_role("button", name="Submit").first.click()
    expect(questions(window)).to_have_count(1)
    expect(questions(window)).to_contain_text("天空为什么是蓝色的？")
    finished(window)
    expect(answers(window)).to_have_count(1)
    expect(answers(window)).to_contain_text(first_words(alone, "天空为什么是蓝色的？", tokens=12))


def test_a_message_that_is_too_long_is_explained_and_is_back_in_the_box(window):
    shorten_answers(window, 5)
    box(window).fill("蜘" * 3000)
    box(window).press("Enter")
    expect(window.get_by_text("The model could not answer.")).to_contain_text("Shorten it")
    finished(window)
    expect(box(window)).to_have_value("蜘" * 3000)
    send(window, "Hi")
    finished(window)
    expect(answers(window)).to_have_count(1)


def test_an_empty_message_asks_nothing(window):
    box(window).fill("   ")
    box(window).press("Enter")
    expect(window.get_by_text("Type a message first.").first).to_be_visible()
    expect(questions(window)).to_have_count(0)


def test_markdown_is_rendered_and_nothing_in_it_is_run_or_loaded(window, person):
    person.exposed = []
    window.expose_function("stolen", lambda: person.exposed.append(1))
    shorten_answers(window, 5)
    send(
        window,
        "**bold** <script>stolen()</script> <img src=x onerror=stolen()> [link](javascript:stolen()) "
        "![](http://evil.example/x.png) <iframe src='http://evil.example'></iframe>\n\n```python\nprint(1)\n```",
        shown="bold",
    )
    finished(window)
    question = questions(window)
    expect(question.locator("strong")).to_have_text("bold")
    expect(question.locator("pre code")).to_contain_text("print(1)")
    assert question.locator("a[href^=javascript], iframe, script, [onerror]").count() == 0
    assert person.exposed == []
    assert "evil.example" not in [host for host in person.hosts if not blocked(person, host)]


def blocked(person, host):
    """Whether the browser has told that it did not ask this host, because of the page's policy."""
    return any(host in line and "Content Security Policy" in line for line in person.complaints)


LETTERS = re.compile(r"[^\W_]")


def letters(text):
    """What Markdown leaves of a text."""
    return "".join(LETTERS.findall(text))


def test_every_setting_reaches_the_model(window, alone):
    def said(system="", **settings):
        generation = Generation(**{"temperature": 0, "max_new_tokens": 12, **settings})
        return letters(alone.answer(ask("Hi", system or None), generation))

    def answer():
        send(window, "Hi")
        finished(window)
        found = letters(answers(window).inner_text())
        window.get_by_role("button", name="New conversation").click()
        expect(answers(window)).to_have_count(0)
        return found

    open_list(window)
    shorten_answers(window, 12)
    assert answer() == said()
    change(window, Repetition_penalty=1.5)
    assert answer() == said(repetition_penalty=1.5) != said()
    change(window, Repetition_penalty=1, Temperature=2)
    assert answer() != said()
    change(window, Top_k=1)
    assert answer() == said()
    change(window, Top_k=0, Top_p=0.01)
    assert answer() == said()
    window.get_by_label("System text").fill("You are kind.")
    assert answer() == said("You are kind.") != said()


def test_a_conversation_that_outgrows_the_context_goes_on_and_says_what_the_model_no_longer_sees(window):
    shorten_answers(window, 5)
    send(window, "蜘" * 1500)  # three tokens each, of 8192
    finished(window)
    expect(status(window)).not_to_contain_text("no longer sees")
    send(window, "蛛" * 1500)
    finished(window)
    expect(answers(window)).to_have_count(2)
    expect(status(window)).to_contain_text(
        "The conversation is long: the model no longer sees its oldest questions and answers (1 left out)."
    )


@pytest.fixture
def own(endless_pair, tmp_path):
    """A page and a model that a test may break: it answers one question at a time, and nobody may wait."""
    engine = Engine(endless_pair, parallel=1, waiting=0)
    job = ChatJob(action="page", name="tiny", title="Own", weights=endless_pair, folder=str(tmp_path))
    served = Served(_app(job, engine, None))
    served.engine = engine
    yield served
    served.close()
    engine.close()


def test_a_busy_model_is_told_and_the_question_can_be_asked_again(person, own):
    window = open_window(person, own.url)
    shorten_answers(window, 5)
    stream = own.engine.stream(Request(tuple(ask("Hi")), Generation(temperature=0, max_new_tokens=8000)))
    next(stream)
    box(window).fill("Are you there?")
    box(window).press("Enter")
    expect(window.get_by_text("Too many people are asking just now.")).to_be_visible()
    expect(box(window)).to_have_value("Are you there?")
    stream.close()
    idle(own.engine)
    box(window).press("Enter")
    expect(questions(window)).to_have_text(re.compile("Are you there?"))
    finished(window)
    expect(answers(window)).to_have_count(1)


@pytest.mark.parametrize("again", ["Retry", "Edit"])
def test_an_answer_is_not_lost_to_one_that_does_not_come(person, own, again):
    window = open_window(person, own.url)
    shorten_answers(window, 5)
    send(window, "Hi")
    finished(window)
    before = answers(window).inner_text()
    stream = own.engine.stream(Request(tuple(ask("Hi")), Generation(temperature=0, max_new_tokens=8000)))
    next(stream)
    window.get_by_role("button", name=again).first.click()
    if again == "Edit":
        window.locator("#tuned textarea").fill("Are you there?")
        window.get_by_role("button", name="Submit").first.click()
    expect(window.get_by_text("Too many people are asking just now.")).to_be_visible()
    stream.close()
    expect(questions(window)).to_have_text(re.compile("Hi"))
    expect(answers(window)).to_have_text(before)
    expect(box(window)).to_have_value("Are you there?" if again == "Edit" else "")
    window.reload()
    expect(answers(window)).to_have_text(before)


def test_a_failing_model_is_told_with_its_reason_and_the_page_goes_on(person, own, capsys):
    def fail(*_):
        raise RuntimeError("device-side <assert>")

    window = open_window(person, own.url)
    shorten_answers(window, 5)
    hook = own.engine.model.register_forward_pre_hook(fail)
    box(window).fill("Are you there?")
    box(window).press("Enter")
    expect(window.get_by_test_id("toast-text")).to_contain_text(
        "The model could not answer. The model failed: RuntimeError: device-side <assert>"
    )
    expect(status(window)).to_have_text("The model could not answer.")
    expect(box(window)).to_have_value("Are you there?")
    hook.remove()
    box(window).press("Enter")
    finished(window)
    expect(answers(window)).to_have_count(1)
    capsys.readouterr()
