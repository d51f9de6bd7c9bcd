"""The chat process from outside: answers on standard output, the page over its API, signals, ports."""

import json
import signal
import socket
import subprocess
import sys
import time

import pytest
from gradio_client import Client
from tiny import make_tiny_model

from tunestation.chat.engine import Engine
from tunestation.chat.page import to_messages
from tunestation.pipeline.process import child_variables
from tunestation.recipe.schema import Generation
from tunestation.settings import child_environment

GREEDY = {"temperature": 0.0, "max_new_tokens": 20}
READY_SECONDS = 90


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(folder, **job):
    """The chat process as the parent starts it; its standard output and error are in files beside the job."""
    file = folder / f"job-{time.monotonic_ns()}.json"
    file.write_text(json.dumps({"title": "Career coach · 职场教练", "generation": GREEDY, **job}), encoding="utf-8")
    out, err = file.with_suffix(".out"), file.with_suffix(".err")
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tunestation.chat.main", str(file)],
            stdout=stdout,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
            env=child_environment(child_variables(folder, offline=True)),
        )
    process.out, process.err = out, err
    return process


def run(folder, **job):
    process = start(folder, **job)
    return process.wait(timeout=READY_SECONDS), process.out.read_text(encoding="utf-8"), process.err.read_text(encoding="utf-8")


def start_page(folder, **job):
    port = free_port()
    process = start(folder, action="page", port=port, **job)
    deadline = time.monotonic() + READY_SECONDS
    while "Ctrl-C" not in process.out.read_text(encoding="utf-8"):
        assert process.poll() is None, process.err.read_text()
        assert time.monotonic() < deadline, "the page was not ready in time"
        time.sleep(0.1)
    process.url = f"http://127.0.0.1:{port}"
    return process


def end(process, number):
    process.send_signal(number)
    return process.wait(timeout=30)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def engine(model):
    return Engine(model)


@pytest.fixture(scope="module")
def page(model, tmp_path_factory):
    process = start_page(tmp_path_factory.mktemp("page"), model=str(model), examples=["What is your name?", "你叫什么名字？"])
    yield process
    assert end(process, signal.SIGTERM) == 0


def expected(engine, *messages, system="", tokens=20):
    conversation = [{"role": "system", "content": system}] if system else []
    conversation += [{"role": role, "content": text} for role, text in messages]
    return list(engine.reply(conversation, Generation(temperature=0, max_new_tokens=tokens)))[-1]


def test_ask_prints_one_answer_and_nothing_else(model, tmp_path, engine):
    answered = run(tmp_path, action="ask", model=str(model), prompts=["Hi"], system="You are kind.")
    cut = "note: the answer was cut at 20 tokens or the end of the context.\n"
    assert answered == (0, expected(engine, ("user", "Hi"), system="You are kind.") + "\n", cut)


def test_ask_with_several_prompts_names_each_before_its_answer(model, tmp_path, engine):
    code, out, _ = run(tmp_path, action="ask", model=str(model), prompts=["Hi", "你叫什么名字？"])
    first, second = expected(engine, ("user", "Hi")), expected(engine, ("user", "你叫什么名字？"))
    assert (code, out) == (0, f"> Hi\n{first}\n> 你叫什么名字？\n{second}\n")


def test_a_missing_model_is_one_line_on_standard_error_and_exit_code_2(tmp_path):
    code, out, err = run(tmp_path, action="ask", model=str(tmp_path / "gone"), prompts=["Hi"])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert "There is no model here" in err


def test_a_port_in_use_is_said_before_the_model_is_loaded(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = run(tmp_path, action="page", model=str(tmp_path / "gone"), port=port)
    assert (code, err) == (2, f"error: port {port} is in use; give another with --port\n")


def test_the_page_says_where_it_is_and_ends_quietly_on_control_c(model, tmp_path):
    process = start_page(tmp_path, model=str(model))
    assert process.out.read_text() == f"Chat with Career coach · 职场教练 at {process.url}  (Ctrl-C stops it)\n"
    assert end(process, signal.SIGINT) == 0
    assert process.err.read_text() == ""


def test_the_page_answers_over_its_api_with_history_and_the_chosen_settings(page, engine):
    client = Client(page.url, verbose=False, download_files=False)
    first = client.predict("Hi", "You are kind.", 0, 12, api_name="/chat")
    assert first == expected(engine, ("user", "Hi"), system="You are kind.", tokens=12)
    second = client.predict("And you?", "You are kind.", 0, 12, api_name="/chat")
    history = [("user", "Hi"), ("assistant", first), ("user", "And you?")]
    assert second == expected(engine, *history, system="You are kind.", tokens=12)


def test_the_answer_streams(page):
    job = Client(page.url, verbose=False, download_files=False).submit("What is your name?", "", 0, 20, api_name="/chat")
    job.result(timeout=60)
    texts = job.outputs()
    assert len(texts) > 3
    assert texts[-1].startswith(texts[0])


def test_a_message_that_is_too_long_gets_no_answer_and_the_page_survives(page, engine):
    client = Client(page.url, verbose=False, download_files=False)
    assert client.predict("legs " * 2000, "", 0, 12, api_name="/chat") is None
    assert client.predict("Hi", "", 0, 12, api_name="/chat") == expected(engine, ("user", "Hi"), tokens=12)


def test_questions_without_an_answer_are_left_out_of_the_conversation():
    parts = [{"type": "text", "text": "Hello."}]
    history = [{"role": "user", "content": "stopped"}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": parts}]
    kept = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "And?"}]
    assert to_messages("And?", [*history, {"role": "user", "content": "failed"}], " ") == kept
    assert to_messages("And?", history, "Be kind.") == [{"role": "system", "content": "Be kind."}, *kept]
