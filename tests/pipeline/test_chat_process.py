"""The chat process from outside: answers on standard output, the terminal, signals, ports, passwords."""

import json
import os
import pty
import re
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest
from chatting import GREEDY, UNHURRIED, ask, expected, run, start, start_server
from station import PATIENCE, children, free_port, wait_until

from tunestation.chat.weights import Weights


def get(url, **options):
    return httpx.get(url, **UNHURRIED, **options)


def test_ask_prints_one_answer_and_nothing_else(pair, tmp_path, engine):
    answered = run(tmp_path, action="ask", weights=pair, prompts=["Hi"])
    cut = "note: the answer was cut at 20 tokens or the end of the context.\n"
    assert answered == (0, expected(engine, "Hi") + "\n", cut)


def test_ask_with_several_prompts_names_each_before_its_answer_and_uses_the_system_text(pair, tmp_path, engine):
    code, out, _ = run(tmp_path, action="ask", weights=pair, prompts=["Hi", "你叫什么名字？"], system="You are kind.")
    first, second = (engine.answer(ask(prompt, "You are kind."), GREEDY) for prompt in ("Hi", "你叫什么名字？"))
    assert (code, out) == (0, f"> Hi\n{first}\n> 你叫什么名字？\n{second}\n")


def test_ask_as_json_is_one_object_a_prompt_with_its_cost(pair, tmp_path, engine):
    untuned = pair.model_copy(update={"adapter": None})
    prompts = ["Hi", "你叫什么名字？"]
    code, out, err = run(tmp_path, action="ask", weights=untuned, prompts=prompts, as_json=True)
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, err, [row["answer"] for row in rows]) == (0, "", [expected(engine, prompt, base=True) for prompt in prompts])
    assert [(row["prompt"], row["finish_reason"], row["completion_tokens"]) for row in rows] == [(p, "length", 20) for p in prompts]
    assert all(row["seconds"] > 0 for row in rows)


def test_every_prompt_that_leaves_no_room_is_named_and_nothing_is_asked(pair, tmp_path):
    code, out, err = run(tmp_path, action="ask", weights=pair, prompts=["legs " * 600, "Hi", "name " * 600])
    assert (code, out) == (2, "")
    assert re.findall(r"prompt '(\w+) .*The message is \d+ tokens long", err) == ["legs", "name"]
    assert "2 problems; nothing was run." in err


def test_a_missing_model_is_one_line_on_standard_error_and_exit_code_2(tmp_path):
    code, out, err = run(tmp_path, action="ask", weights=Weights(model=str(tmp_path / "gone")), prompts=["Hi"])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert "There is no model here" in err


def test_other_token_ids_than_training_saw_are_never_served(pair, tmp_path):
    probes = json.loads(Path(pair.probe).read_text(encoding="utf-8"))
    probes["zh"]["prompt_ids"][0] += 1
    changed = tmp_path / "probe.json"
    changed.write_text(json.dumps(probes), encoding="utf-8")
    code, out, err = run(tmp_path, action="serve", weights=pair.model_copy(update={"probe": str(changed)}))
    assert (code, out) == (2, "")
    assert "makes other token ids than training saw (zh in" in err


def test_a_port_in_use_is_said_before_the_model_is_loaded(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = run(tmp_path, action="page", weights=Weights(model=str(tmp_path / "gone")), port=port)
    assert (code, err) == (2, f"error: port {port} is in use; give another with --port\n")


def test_the_page_says_where_it_is_also_serves_the_api_and_ends_quietly_on_control_c(pair, tmp_path, engine):
    process = start_server(tmp_path, weights=pair)
    loaded, ready = process.said().splitlines()
    assert re.fullmatch(r"Loaded in [\d.]+ s: pair\d+/base, 0\.1 million parameters, float32 on CPU", loaded)
    assert ready == f"Chat with Career coach · 职场教练 at {process.url}  (Ctrl-C stops it)"
    body = {"model": "tiny", "messages": ask("Hi")}
    answer = httpx.post(f"{process.url}/v1/chat/completions", json=body, **UNHURRIED).json()
    assert answer["choices"][0]["message"]["content"] == expected(engine, "Hi")
    with httpx.stream("GET", f"{process.url}/gradio_api/heartbeat/window", **UNHURRIED) as open_page:
        next(open_page.iter_text())
        assert process.end(signal.SIGINT) == 0
    assert process.complained() == ""


def test_the_page_gives_out_no_file_takes_none_and_loads_nothing_from_elsewhere(pair, tmp_path):
    process = start_server(tmp_path, weights=pair)
    page = get(process.url)
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in ("/etc/passwd", pair.probe, str(tmp_path)):
        assert get(f"{process.url}/gradio_api/file={path}").status_code == 403
    upload = httpx.post(f"{process.url}/gradio_api/upload", files={"files": ("x.txt", b"x" * 100)}, **UNHURRIED)
    assert upload.status_code >= 400
    assert get(process.url, headers={"host": "evil.example"}).status_code == 403
    assert process.end() == 0


def test_a_public_page_prints_a_new_password_and_asks_for_it_everywhere(pair, tmp_path):
    process = start_server(tmp_path, weights=pair, public=True)
    password = re.search(r"as its key\): (\S{22})$", process.said(), re.MULTILINE)[1]
    with httpx.Client(base_url=process.url, **UNHURRIED) as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/models", headers={"authorization": f"Bearer {password}"}).status_code == 200
        assert client.get("/config").status_code == 401
        assert client.post("/login", data={"username": "me", "password": "guess"}).status_code == 400
        assert client.post("/login", data={"username": "me", "password": password}).status_code == 200
        assert client.get("/config").status_code == 200
    assert process.end() == 0
    assert password not in process.complained()


def test_a_password_of_one_s_own_is_printed_nowhere_and_must_be_long_and_fit_a_header(pair, tmp_path):
    process = start_server(tmp_path, action="serve", weights=pair, public=True, environment={"TUNE_PASSWORD": "correct horse"})
    assert get(f"{process.url}/v1/models", headers={"authorization": "Bearer correct horse"}).status_code == 200
    assert "correct horse" not in process.said() + process.complained()
    assert process.end() == 0
    refused = {"1234567": "has fewer than 8 characters. Choose a longer", "пароль мой": "has characters that a bearer token cannot carry."}
    for bad, told in refused.items():
        code, _, err = run(tmp_path, action="serve", weights=pair, public=True, environment={"TUNE_PASSWORD": bad})
        assert (code, err.startswith(f"error: TUNE_PASSWORD {told}")) == (2, True)


@pytest.fixture
def terminal(tmp_path):
    """Starts a conversation over a pseudo-terminal; `say(text)` types."""
    opened = []

    def begin(weights, **job):
        ours, theirs = pty.openpty()
        chat = start(tmp_path, stdin=os.ttyname(theirs), action="terminal", weights=weights, **job)
        opened.append((chat.process, ours, theirs))
        chat.say = lambda text: os.write(ours, f"{text}\n".encode())
        return chat

    yield begin
    for process, *files in opened:
        process.kill()
        for file in files:
            os.close(file)


def test_a_conversation_in_the_terminal_with_all_its_commands(pair, terminal, tmp_path, engine):
    talk = terminal(pair)
    talk.say("Hi")
    assert expected(engine, "Hi") in talk.until(" a second")
    talk.say('"""\nWhat is\nyour name?\n"""')
    first = [*ask("Hi"), {"role": "assistant", "content": expected(engine, "Hi")}]
    assert engine.answer([*first, *ask("What is\nyour name?")], GREEDY) in talk.until(" a second", 2)
    talk.say("/retry")
    talk.until(" a second", 3)
    talk.say("/save")
    talk.until("Name a file")
    talk.say("/dance")
    talk.until("There is no command /dance.")
    talk.say(f"/save {tmp_path / 'saved.jsonl'}")
    talk.until("Saved: ")
    (row,) = [json.loads(line) for line in (tmp_path / "saved.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 2
    assert row["messages"][2]["content"] == "What is\nyour name?"
    talk.say("/reset")
    talk.say("/system You are kind.")
    talk.until("System text set.")
    talk.say("Hi")
    talk.until(" a second", 4)
    assert engine.answer(ask("Hi", "You are kind."), GREEDY) in talk.said()
    talk.say("legs " * 600)
    talk.until("The model could not answer. The message with the system text is")
    talk.say("/quit")
    assert talk.wait() == 0
    assert "Hi" in (tmp_path / "terminal-history").read_text()
    assert talk.complained() == ""


def test_control_c_in_the_terminal_stops_the_answer_and_not_the_conversation(endless_pair, terminal):
    talk = terminal(endless_pair, generation={"temperature": 0.0, "max_new_tokens": 7000})
    talk.say("Hi")
    while not talk.until("> ").partition("> ")[2]:
        time.sleep(0.05)
    os.kill(talk.process.pid, signal.SIGINT)
    talk.until("(stopped)")
    talk.say("/help")
    talk.until("/help names the commands")
    talk.until("/save FILE")
    talk.say("/quit")
    assert talk.wait() == 0


def test_without_an_interactive_terminal_the_lines_of_standard_input_are_asked(pair, tmp_path, engine):
    file = tmp_path / "lines"
    file.write_text("Hi\n")
    process = start(tmp_path, stdin=str(file), action="terminal", weights=pair)
    assert process.wait() == 0
    assert expected(engine, "Hi") in process.said()


SHORT = ("--set", "chat.generation.max_new_tokens=12")


def test_the_task_asks_the_finished_model_and_the_untuned_one(station):
    station.make("merge", SHORT[1])
    tuned, untuned = (json.loads(station.invoke("ask", "tiny", "What is 1 and 1?", "--json", *SHORT, *words)) for words in ([], ["--base"]))
    assert tuned["prompt"] == untuned["prompt"] == "What is 1 and 1?"
    assert tuned["answer"] != untuned["answer"]


@pytest.mark.parametrize(("task", "said"), [(("serve", "tiny"), ""), (("ask", "tiny", "Hi"), "Stopped.\n")])
def test_a_task_that_is_stopped_before_its_model_is_loaded_ends_without_an_error(station, task, said):
    station.make("merge", SHORT[1])
    running = station.start(*task, *SHORT)
    wait_until(lambda: children(running, "tunestation.chat.main"), lambda: running.poll() is None)
    running.send_signal(signal.SIGTERM)
    assert (running.communicate(timeout=PATIENCE)[0], running.returncode) == (said, 1 if said else 0)


def test_the_served_api_ends_quietly_on_sigterm(station):
    station.make("merge", SHORT[1])
    running = station.start("serve", "tiny", "--port", str(free_port()), *SHORT)
    for line in running.stdout:
        if "Ctrl-C stops it" in line:
            running.send_signal(signal.SIGTERM)
            break
    assert (running.communicate(timeout=PATIENCE)[0], running.returncode) == ("", 0)
