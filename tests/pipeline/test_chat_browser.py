"""The chat page as a person sees it, in headless Chromium."""

import json
import re
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from chatting import expected, start_server
from playwright.sync_api import expect, sync_playwright
from station import PATIENCE

from tunestation.chat.engine import Engine

expect.set_options(timeout=PATIENCE * 1000)

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
EXAMPLE = "我在职场中感到压力很大，总是很焦虑，该怎么办？"

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}: apt-get install chromium")


@pytest.fixture(scope="module")
def alone(endless_pair):
    """The model of the page, asked without a page."""
    engine = Engine(endless_pair)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def server(endless_pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    generation = {"temperature": 0.0, "max_new_tokens": 4000}
    chat = start_server(folder, weights=endless_pair, examples=[EXAMPLE, "How do I ask for a raise?"], generation=generation)
    chat.folder = folder
    yield chat
    assert chat.end() == 0
    assert chat.complained() == ""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def person(chromium):
    """A browser with nothing kept; `hosts` are whom it asked, `complaints` what it had to complain of."""
    context = chromium.new_context(viewport={"width": 1200, "height": 800}, locale="en-US")
    context.hosts, context.complaints = set(), []
    context.on("request", lambda request: context.hosts.add(urlsplit(request.url).hostname))
    context.on("console", lambda line: context.complaints.append(line.text) if line.type in ("error", "warning") else None)
    context.on("weberror", lambda error: context.complaints.append(str(error.error)))
    yield context
    context.close()


@pytest.fixture
def window(person, server):
    return open_window(person, server)


def open_window(person, server):
    window = person.new_page()
    window.goto(server.url)
    expect(window.locator("#box textarea")).to_be_editable(timeout=30_000)
    return window


def send(window, text, shown=None):
    """Type and press Enter; returns when the page shows the message, and so has closed its box until the answer is there."""
    window.locator("#box textarea").fill(text)
    window.locator("#box textarea").press("Enter")
    expect(window.locator("#tuned .message.user").last).to_contain_text(shown or text[:20])


def finished(window):
    """Wait until the model has stopped: the box takes the next message."""
    expect(window.locator("#box textarea")).to_be_editable(timeout=60_000)
    expect(window.locator("#box .submit-button")).to_be_visible()


def wait_until_idle(server):
    deadline = time.monotonic() + 20
    while httpx.get(f"{server.url}/health", trust_env=False).json()["running"]:
        assert time.monotonic() < deadline, "the model still answers"


def answers(window, who="tuned"):
    return window.locator(f"#{who} .message.bot")


def shorten_answers(window, tokens):
    window.get_by_role("button", name="Settings").click()
    number = window.get_by_label(re.compile("number input for Longest answer"))
    number.fill(str(tokens))
    number.press("Tab")


def first_words(engine, text, **options):
    """The beginning of what the model says: Markdown leaves it as it is."""
    return re.search(r"\w+", expected(engine, text, **options))[0]


def test_a_person_asks_and_is_answered_with_nothing_but_this_machine_involved(window, person, alone):
    expect(window).to_have_title("Career coach · 职场教练")
    expect(window.get_by_text("Loaded in")).to_contain_text("base, 0.1 million parameters, float32 on CPU")
    shorten_answers(window, 12)
    send(window, "你好, who are you?")
    finished(window)
    expect(answers(window)).to_contain_text(first_words(alone, "你好, who are you?", tokens=12))
    expect(window.locator(".status").last).to_contain_text(re.compile(r"12 tokens, [\d.]+ a second · Cut at its longest length"))
    for width in (1200, 390):
        window.set_viewport_size({"width": width, "height": 800})
        assert window.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert person.hosts == {"127.0.0.1"}
    assert person.complaints == []


def test_before_and_after_stand_side_by_side_and_a_vote_is_kept(window, alone, server):
    shorten_answers(window, 12)
    expect(window.locator("#base")).to_be_hidden()
    window.get_by_label("Before and after").check()
    send(window, "Hi")
    finished(window)
    for who in ("tuned", "base"):
        expect(answers(window, who)).to_contain_text(first_words(alone, "Hi", base=who == "base", tokens=12))
    assert answers(window, "tuned").inner_text() != answers(window, "base").inner_text()
    window.get_by_role("button", name="Tuned is better", exact=True).click()
    expect(window.locator("#count")).to_have_text("Votes: tuned 1, no difference 0, untuned 0")
    expect(window.get_by_role("button", name="Tuned is better", exact=True)).to_be_hidden()
    (vote,) = [json.loads(line) for line in (server.folder / "votes.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (vote["better"], vote["messages"], vote["base"]) == (
        "tuned",
        [{"role": "user", "content": "Hi"}],
        expected(alone, "Hi", True, 12),
    )


def test_an_example_of_the_recipe_is_asked_with_one_click(window, alone):
    shorten_answers(window, 5)
    window.get_by_role("button", name=EXAMPLE).click()
    expect(window.locator("#tuned .message.user")).to_contain_text(EXAMPLE)
    finished(window)
    expect(answers(window)).to_contain_text(first_words(alone, EXAMPLE, tokens=5))


def test_stop_keeps_what_was_said_and_the_next_question_is_answered(window):
    send(window, "Please write.")
    expect(answers(window)).to_contain_text(re.compile(r"\w{3}"), timeout=30_000)
    window.locator("#box .stop-button").click()
    finished(window)
    expect(window.locator(".status").last).to_contain_text("Stopped.")
    stopped = answers(window).inner_text()
    shorten_answers(window, 5)
    send(window, "Again")
    finished(window)
    expect(answers(window)).to_have_count(2)
    assert answers(window).first.inner_text() == stopped


def test_retry_answers_again_and_clear_starts_anew(window):
    shorten_answers(window, 5)
    send(window, "Hi")
    finished(window)
    window.get_by_label(re.compile("number input for Longest answer")).fill("10")
    window.get_by_label(re.compile("number input for Longest answer")).press("Tab")
    window.get_by_role("button", name="Retry").click()
    expect(window.locator(".status").last).to_contain_text("10 tokens")
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
    expect(window.locator("#tuned .message.user")).to_have_count(1)
    expect(window.locator("#tuned .message.user")).to_contain_text("天空为什么是蓝色的？")
    finished(window)
    expect(answers(window)).to_have_count(1)
    expect(answers(window)).to_contain_text(first_words(alone, "天空为什么是蓝色的？", tokens=12))


def test_a_corrected_answer_stands_and_is_exported(window):
    shorten_answers(window, 5)
    send(window, "Hi")
    finished(window)
    window.get_by_role("button", name="Edit").last.click()
    window.locator("#tuned textarea").fill("A better answer.")
    window.get_by_role("button", name="Submit").first.click()
    expect(answers(window)).to_have_text("A better answer.")
    window.locator(".toggle-button").first.click()
    with window.expect_download() as download:
        window.get_by_role("button", name="Export as training data").click()
    (row,) = [json.loads(line) for line in download.value.path().read_text(encoding="utf-8").splitlines()]
    assert row["messages"][1] == {"role": "assistant", "content": "A better answer."}


def test_clearing_while_it_answers_ends_the_answer_and_leaves_nothing(window, server):
    send(window, "Please write.")
    expect(answers(window)).to_contain_text(re.compile(r"\w{3}"), timeout=30_000)
    window.get_by_role("button", name="Clear").click()
    expect(answers(window)).to_have_count(0)
    finished(window)
    wait_until_idle(server)
    window.locator(".toggle-button").first.click()
    expect(window.locator("#talks label")).to_have_count(0)


def test_conversations_outlive_a_reload_are_listed_and_leave_as_training_data(window, tmp_path):
    shorten_answers(window, 5)
    send(window, "Hi")
    finished(window)
    said = answers(window).inner_text()
    window.reload()
    expect(answers(window)).to_have_text(said, timeout=30_000)
    window.locator(".toggle-button").first.click()
    window.get_by_role("button", name="New conversation").click()
    expect(answers(window)).to_have_count(0)
    shorten_answers(window, 5)
    send(window, "What is your name?")
    finished(window)
    window.locator("#talks label", has_text="Hi").click()
    expect(answers(window)).to_have_text(said)
    with window.expect_download() as download:
        window.get_by_role("button", name="Export as training data").click()
    assert download.value.suggested_filename == "conversations.jsonl"
    rows = [json.loads(line) for line in download.value.path().read_text(encoding="utf-8").splitlines()]
    assert [row["messages"][0]["content"] for row in rows] == ["What is your name?", "Hi"]
    assert all(row["messages"][1]["role"] == "assistant" for row in rows)


def test_two_windows_at_once_have_a_conversation_each(person, server):
    first, second = open_window(person, server), open_window(person, server)
    send(first, "Please write.")
    expect(answers(first)).to_contain_text(re.compile(r"\w{3}"), timeout=30_000)
    shorten_answers(second, 5)
    send(second, "Hi")
    finished(second)
    expect(answers(second)).to_have_count(1)
    expect(first.locator("#box .stop-button")).to_be_visible()
    first.locator("#box .stop-button").click()
    finished(first)
    expect(first.locator("#tuned .message.user")).to_have_text(re.compile("Please write."))
    first.locator(".toggle-button").first.click()
    expect(first.locator("#talks label")).to_have_count(2)


def test_leaving_the_page_ends_its_answer(window, server):
    send(window, "Please write.")
    expect(answers(window)).to_contain_text(re.compile(r"\w{3}"), timeout=30_000)
    window.close()
    wait_until_idle(server)


def test_a_message_that_is_too_long_is_explained_and_is_back_in_the_box(window):
    shorten_answers(window, 5)
    window.locator("#box textarea").fill("蜘" * 3000)
    window.locator("#box textarea").press("Enter")
    expect(window.get_by_text("The model could not answer.")).to_contain_text("Shorten it")
    finished(window)
    expect(window.locator("#box textarea")).to_have_value("蜘" * 3000)
    send(window, "Hi")
    finished(window)
    expect(answers(window)).to_have_count(1)


def test_an_empty_message_asks_nothing(window):
    window.locator("#box textarea").fill("   ")
    window.locator("#box textarea").press("Enter")
    expect(window.get_by_text("Type a message first.").first).to_be_visible()
    expect(window.locator("#tuned .message.user")).to_have_count(0)


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
    question = window.locator("#tuned .message.user")
    expect(question.locator("strong")).to_have_text("bold")
    expect(question.locator("pre code")).to_contain_text("print(1)")
    assert question.locator("a[href^=javascript], iframe, script, [onerror]").count() == 0
    assert person.exposed == []
    assert "evil.example" not in [host for host in person.hosts if not blocked(person, host)]


def blocked(person, host):
    """Whether the browser has told that it did not ask this host, because of the page's policy."""
    return any(host in line and "Content Security Policy" in line for line in person.complaints)


def test_the_page_speaks_chinese_to_a_chinese_browser_and_either_language_on_demand(chromium, server):
    context = chromium.new_context(locale="zh-CN")
    window = open_window(context, server)
    expect(window.locator("#box textarea")).to_have_attribute("placeholder", "输入消息，按回车发送")
    expect(window.get_by_label("前后对比")).to_be_visible()
    window.locator(".toggle-button").first.click()
    window.get_by_label("English").check()
    expect(window.locator("#box textarea")).to_have_attribute("placeholder", "Type a message, and press Enter")
    context.close()


def test_a_changed_setting_stays_when_the_language_changes(window):
    shorten_answers(window, 5)
    window.locator(".toggle-button").first.click()
    window.get_by_label("中文").check()
    expect(window.locator("#box textarea")).to_have_attribute("placeholder", "输入消息，按回车发送")
    send(window, "Hi")
    finished(window)
    expect(window.locator(".status").last).to_contain_text("5 ")


def test_a_public_page_lets_in_who_knows_the_password_alone(chromium, endless_pair, tmp_path):
    server = start_server(tmp_path, weights=endless_pair, public=True, environment={"TUNE_PASSWORD": "correct horse"})
    context = chromium.new_context(locale="en-US")
    window = context.new_page()
    window.goto(server.url)
    for password, seen in (("wrong", window.get_by_text("Incorrect Credentials")), ("correct horse", window.locator("#box textarea"))):
        window.get_by_label("username").fill("anyone")
        window.get_by_label("password").fill(password)
        window.get_by_role("button", name="Login").click()
        expect(seen).to_be_visible(timeout=20_000)
    context.close()
    assert server.end() == 0
