"""What the chat page compares and keeps, for whom, and in which language, in headless Chromium."""

import json
import re

import pytest
from browsing import (
    CHROMIUM,
    answers,
    box,
    finished,
    first_words,
    new_person,
    open_list,
    open_window,
    send,
    shorten_answers,
    status,
    wait_for_words,
    wait_until_idle,
)
from chatting import expected, start_server
from playwright.sync_api import expect
from station import wait_until

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}: apt-get install chromium")


def test_before_and_after_stand_side_by_side_and_a_vote_is_kept(window, alone, server):
    shorten_answers(window, 12)
    expect(window.locator("#base")).to_be_hidden()
    window.get_by_label("Before and after").check()
    expect(window.locator("#base")).to_be_visible()
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


def test_a_corrected_answer_stands_and_is_exported(window, server):
    shorten_answers(window, 5)
    send(window, "Hi")
    finished(window)
    window.get_by_role("button", name="Edit").last.click()
    window.locator("#tuned textarea").fill("A **better** answer.")
    window.get_by_role("button", name="Submit").first.click()
    expect(answers(window)).to_have_text("A better answer.")
    expect(answers(window).locator("strong")).to_have_text("better")
    kept = server.folder / "conversations"
    wait_until(lambda: any(b"A **better**" in talk.read_bytes() for talk in kept.rglob("*.json")))
    open_list(window)
    with window.expect_download() as download:
        window.get_by_role("button", name="Export as training data").click()
    (row,) = [json.loads(line) for line in download.value.path().read_text(encoding="utf-8").splitlines()]
    assert row["messages"][1] == {"role": "assistant", "content": "A **better** answer."}


def test_clearing_while_it_answers_ends_the_answer_and_leaves_nothing(window, server):
    send(window, "Please write.")
    wait_for_words(window)
    window.get_by_role("button", name="Clear").click()
    expect(answers(window)).to_have_count(0)
    finished(window)
    wait_until_idle(server)
    open_list(window)
    expect(window.locator("#talks label")).to_have_count(0)


def test_conversations_outlive_a_reload_are_listed_and_leave_as_training_data(window, tmp_path):
    shorten_answers(window, 5)
    send(window, "Hi")
    finished(window)
    said = answers(window).inner_text()
    window.reload()
    expect(answers(window)).to_have_text(said)
    open_list(window)
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


def test_another_conversation_is_opened_with_the_keyboard(window):
    shorten_answers(window, 5)
    send(window, "Hi")
    finished(window)
    open_list(window)
    window.get_by_role("button", name="New conversation").click()
    expect(answers(window)).to_have_count(0)
    send(window, "What is your name?")
    finished(window)
    window.locator("#talks input:checked").press("Tab")
    window.keyboard.press("Space")
    expect(window.locator("#tuned .message.user")).to_have_text(re.compile("Hi"))


def test_two_windows_at_once_have_a_conversation_each(person, server):
    first, second = open_window(person, server.url), open_window(person, server.url)
    shorten_answers(second, 5)
    send(first, "Please write.")
    wait_for_words(first)
    send(second, "Hi")
    finished(second)
    expect(answers(second)).to_have_count(1)
    expect(first.locator("#box .stop-button")).to_be_visible()
    first.locator("#box .stop-button").click()
    finished(first)
    expect(first.locator("#tuned .message.user")).to_have_text(re.compile("Please write."))
    open_list(first)
    expect(first.locator("#talks label")).to_have_count(2)


def test_leaving_the_page_ends_its_answer(window, server):
    send(window, "Please write.")
    wait_for_words(window)
    window.close()
    wait_until_idle(server)


def test_the_page_speaks_chinese_to_a_chinese_browser_and_either_language_on_demand(chromium, server):
    context = new_person(chromium, "zh-CN")
    window = open_window(context, server.url)
    expect(box(window)).to_have_attribute("placeholder", "输入消息，按回车发送")
    expect(window.get_by_label("前后对比")).to_be_visible()
    open_list(window)
    window.get_by_label("English").check()
    expect(box(window)).to_have_attribute("placeholder", "Type a message, and press Enter")
    context.close()


def test_a_changed_setting_stays_when_the_language_changes(window):
    shorten_answers(window, 5)
    open_list(window)
    window.get_by_label("中文").check()
    expect(box(window)).to_have_attribute("placeholder", "输入消息，按回车发送")
    send(window, "Hi")
    finished(window)
    expect(status(window)).to_contain_text("5 ")


def test_a_public_page_lets_in_who_knows_the_password_alone(chromium, endless_pair, tmp_path):
    server = start_server(tmp_path, weights=endless_pair, public=True, environment={"TUNE_PASSWORD": "correct horse"})
    context = new_person(chromium)
    window = context.new_page()
    window.goto(server.url)
    for password, seen in (("wrong", window.get_by_text("Incorrect Credentials")), ("correct horse", box(window))):
        window.get_by_label("username").fill("anyone")
        window.get_by_label("password").fill(password)
        window.get_by_role("button", name="Login").click()
        expect(seen).to_be_visible()
    context.close()
    assert server.end() == 0
