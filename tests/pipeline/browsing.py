"""What the tests of the chat page share: a window of headless Chromium, and what a person does in it."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from chatting import UNHURRIED, expected
from playwright.sync_api import expect
from station import PATIENCE, wait_until

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
EXAMPLE = "我在职场中感到压力很大，总是很焦虑，该怎么办？"
PAINT = "() => new Promise(painted => requestAnimationFrame(() => setTimeout(painted)))"

expect.set_options(timeout=PATIENCE * 1000)


def new_person(chromium, language="en-US"):
    """A browser with nothing kept; `hosts` are whom it asked, `complaints` what it had to complain of."""
    context = chromium.new_context(viewport={"width": 1200, "height": 800}, locale=language)
    context.set_default_timeout(PATIENCE * 1000)
    context.hosts, context.complaints = set(), []
    context.on("request", lambda request: context.hosts.add(urlsplit(request.url).hostname))
    context.on("console", lambda line: context.complaints.append(line.text) if line.type in ("error", "warning") else None)
    context.on("weberror", lambda error: context.complaints.append(str(error.error)))
    return context


def open_window(person, url):
    window = person.new_page()
    streams = window.streams = set()
    window.on("request", lambda request: streams.add(request) if "/queue/data" in request.url else None)
    for end in ("requestfinished", "requestfailed"):
        window.on(end, lambda request: streams.discard(request))
    window.goto(url)
    expect(box(window)).to_be_editable()
    return window


def box(window):
    return window.locator("#box textarea")


def answers(window, who="tuned"):
    return window.locator(f"#{who} .message.bot")


def questions(window):
    return window.locator("#tuned .message.user")


def status(window):
    """What is said below the conversation."""
    return window.locator(".status").last


def send(window, text, shown=None):
    """Type and press Enter; returns when the page shows the message, and so has closed its box until the answer is there."""
    box(window).fill(text)
    box(window).press("Enter")
    expect(questions(window).last).to_contain_text(shown or text[:20])


def finished(window):
    """Wait until the model has stopped: the box takes the next message, and all that was told with it is painted.

    Gradio loses the answer to a question that is sent after its server has closed the stream of events and before the browser knows.
    """
    expect(box(window)).to_be_editable()
    expect(window.locator("#box .submit-button")).to_be_visible()
    wait_until(lambda: window.evaluate(PAINT) or not window.streams)
    window.evaluate(PAINT)


def wait_for_words(window):
    """Until some of the answer is there."""
    expect(answers(window)).to_contain_text(re.compile(r"\w{3}"))


def wait_until_idle(server):
    wait_until(lambda: not httpx.get(f"{server.url}/health", **UNHURRIED).json()["running"])


def change(window, **settings):
    """Change settings by their labels: Top_p=0.5 is "Top-p"."""
    if not window.get_by_label("System text").is_visible():
        window.get_by_role("button", name="Settings").click()
    for label, value in settings.items():
        name = re.compile(f"number input for {label.replace('_', '.')}")
        window.get_by_label(name).fill(str(value))
        window.get_by_label(name).press("Tab")


def shorten_answers(window, tokens):
    change(window, Longest_answer=tokens)


def open_list(window):
    """The conversations and the language on the left."""
    window.locator(".toggle-button").first.click()


def first_words(engine, text, **options):
    """The beginning of what the model says: Markdown leaves it as it is."""
    return re.search(r"\w+", expected(engine, text, **options))[0]
