"""The chat page as a person sees it, in headless Chromium."""

import re
import signal
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from playwright.sync_api import expect, sync_playwright
from test_chat_page import end, expected, start_page
from tiny import make_tiny_model

from tunestation.chat.engine import Engine

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
EXAMPLE = "我在职场中感到压力很大，总是很焦虑，该怎么办？"

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}: apt-get install chromium")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model that never ends an answer, so that there is time to press stop."""
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", context=8192)
    endless = Engine(folder)
    with torch.no_grad():
        endless.model.lm_head.weight[endless.stop] = 0
    endless.model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    process = start_page(
        tmp_path_factory.mktemp("page"),
        model=str(model),
        examples=[EXAMPLE, "How do I ask for a raise?"],
        generation={"temperature": 0.0, "max_new_tokens": 4000},
    )
    yield process
    assert end(process, signal.SIGTERM) == 0


@pytest.fixture
def browser(tmp_path):
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=CHROMIUM, headless=True, args=FLAGS.split(), viewport={"width": 1200, "height": 800}
        )
        context.hosts, context.complaints = set(), []
        context.on("request", lambda request: context.hosts.add(urlsplit(request.url).hostname))
        context.on("console", lambda line: context.complaints.append(line.text) if line.type in ("error", "warning") else None)
        context.on("weberror", lambda error: context.complaints.append(str(error.error)))
        yield context
        context.close()


@pytest.fixture
def page(browser, server):
    page = browser.new_page()
    page.goto(server.url)
    expect(page.locator("textarea").first).to_be_visible(timeout=30_000)
    return page


def send(page, text):
    """Type and press Enter; returns when the page shows the message, and so has closed its box until the answer is there."""
    box = page.locator("textarea").first
    box.fill(text)
    box.press("Enter")
    expect(page.locator(".message.user").last).to_contain_text(text[:20])


def finished(page):
    """Wait until the model has stopped: the box takes the next message."""
    expect(page.locator("textarea").first).to_be_editable(timeout=60_000)
    expect(page.locator(".submit-button")).to_be_visible()


def answers(page):
    return page.locator(".message.bot:not(.pending)")


def open_settings(page):
    page.get_by_role("button", name=re.compile("Settings")).click()


def set_longest_answer(page, tokens):
    number = page.get_by_label(re.compile("number input for Longest answer"))
    number.fill(str(tokens))
    number.press("Tab")


def shorten_answers(page, tokens):
    open_settings(page)
    set_longest_answer(page, tokens)


def test_a_person_asks_and_is_answered_with_nothing_but_this_machine_involved(page, browser, model):
    expect(page).to_have_title("Career coach · 职场教练")
    expect(page.get_by_text("Loaded in")).to_contain_text("model, 0.1 million parameters, float32 on CPU")
    shorten_answers(page, 12)
    send(page, "你好, who are you?")
    finished(page)
    first_word = expected(Engine(model), ("user", "你好, who are you?"), tokens=12).split()[0]
    expect(answers(page)).to_contain_text(first_word)
    for width in (1200, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.hosts == {"127.0.0.1"}
    assert browser.complaints == []


def test_an_example_of_the_recipe_is_asked_with_one_click(page, model):
    shorten_answers(page, 5)
    page.get_by_role("button", name=EXAMPLE).click()
    expect(page.locator(".message.user")).to_contain_text(EXAMPLE)
    expect(answers(page)).to_contain_text(expected(Engine(model), ("user", EXAMPLE), tokens=5).split()[0])


def test_stop_keeps_what_was_said_and_the_next_question_is_answered(page):
    send(page, "Please write.")
    expect(answers(page)).to_contain_text(re.compile(r"\w{3}"), timeout=30_000)
    page.locator(".stop-button").click()
    finished(page)
    stopped = answers(page).inner_text()
    page.wait_for_timeout(500)
    assert answers(page).inner_text() == stopped
    shorten_answers(page, 5)
    send(page, "Again")
    finished(page)
    expect(answers(page)).to_have_count(2)


def test_retry_answers_again_and_clear_starts_anew(page):
    shorten_answers(page, 5)
    send(page, "Hi")
    finished(page)
    before = answers(page).inner_text()
    set_longest_answer(page, 10)
    page.get_by_role("button", name="Retry").click()
    expect(answers(page)).to_contain_text(re.compile(f"^{re.escape(before)}.+"))
    expect(answers(page)).to_have_count(1)
    finished(page)
    page.get_by_role("button", name="Clear").click()
    expect(answers(page)).to_have_count(0)
    expect(page.get_by_role("button", name=EXAMPLE)).to_be_visible()


def test_a_message_that_is_too_long_is_explained_and_the_page_survives(page):
    shorten_answers(page, 5)
    send(page, "蜘" * 3000)
    expect(page.get_by_text("The model could not answer.")).to_contain_text("Shorten it")
    finished(page)
    send(page, "Hi")
    finished(page)
    expect(answers(page)).to_have_count(1)


def test_an_empty_message_asks_nothing(page):
    page.locator("textarea").first.fill("   ")
    page.locator("textarea").first.press("Enter")
    expect(page.get_by_text("Type a message first.").first).to_be_visible()
    expect(page.locator(".message.user")).to_have_count(0)
