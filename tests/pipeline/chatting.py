"""What the tests of chat share: a tiny model with an adapter that changes its answers, and the chat process from outside."""

import json
import multiprocessing.process
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import torch
import uvicorn
from peft import LoraConfig, get_peft_model
from station import PATIENCE, forks, free_port, wait_until
from tiny import make_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunestation.chat.answers import Request
from tunestation.chat.engine import Engine
from tunestation.chat.main import main
from tunestation.chat.weights import Weights
from tunestation.data.probe import probe
from tunestation.recipe.schema import Generation

UNHURRIED = {"trust_env": False, "timeout": PATIENCE}
"""How httpx asks a server of this machine: it waits as long as a slow machine takes."""
GREEDY = Generation(temperature=0, max_new_tokens=20)
QUESTIONS = ["Hi", "What is your name?", "天空为什么是蓝色的？", "Please write one short sentence about the weather of today, and more."]


def make_pair(folder: Path, context: int = 512, endless: bool = False) -> Weights:
    """A tiny model, an adapter that changes what it says, and the probes of its tokenizer; `endless` answers never stop by themselves."""
    base = make_tiny_model(folder / "base", context=context)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    if endless:
        with torch.no_grad():
            model.lm_head.weight[tokenizer.eos_token_id] = 0
        model.save_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        adapted = get_peft_model(model, config)
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
    (folder / "probe.json").write_text(json.dumps(probe(tokenizer)), encoding="utf-8")
    return Weights(model=str(base), adapter=str(folder / "adapter"), probe=str(folder / "probe.json"))


def ask(text: str, system: str | None = None) -> list[dict]:
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]


def expected(engine: Engine, text: str, base: bool = False, tokens: int = 20, **request: object) -> str:
    """What the engine answers when it has nothing else to do."""
    return collect(engine.stream(Request(tuple(ask(text)), GREEDY.model_copy(update={"max_new_tokens": tokens}), base=base, **request)))[0]


def collect(stream) -> tuple[str, object]:
    """(text, ending) of a stream."""
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return "".join(pieces), end.value


def idle(engine: Engine) -> None:
    """Wait until no answer is being drawn."""
    wait_until(lambda: engine.scheduler.load() == (0, 0))


class Served:
    """An API, with or without a page, on a port of this machine, in a thread."""

    def __init__(self, app):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        quiet = {"log_level": "error", "ws": "none", "timeout_graceful_shutdown": 1, "timeout_keep_alive": PATIENCE}
        self._server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, **quiet))
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def client(self, key="none"):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, http_client=httpx.Client(**UNHURRIED))

    def close(self):
        self._server.should_exit = True
        self._thread.join()


@dataclass
class Chat:
    """A chat process; its standard output and error are in files."""

    process: multiprocessing.process.BaseProcess
    out: Path
    err: Path
    url: str = ""

    def said(self) -> str:
        return self.out.read_bytes().decode("utf-8", "replace")

    def complained(self) -> str:
        return self.err.read_bytes().decode("utf-8", "replace")

    def wait(self) -> int | None:
        """Its exit code."""
        self.process.join(PATIENCE)
        return self.process.exitcode

    def until(self, text: str, count: int = 1) -> str:
        """What it has said once that holds `text` as often as this."""
        deadline = time.monotonic() + PATIENCE
        while self.said().count(text) < count:
            assert self.process.is_alive(), self.complained()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)
        return self.said()

    def end(self, number: int = signal.SIGTERM) -> int | None:
        os.kill(self.process.pid, number)
        return self.wait()


def start(folder: Path, environment: dict | None = None, stdin: str = os.devnull, **job: object) -> Chat:
    """The chat process with a job as the parent writes it, forked from an interpreter that has imported the libraries."""
    file = folder / f"job-{time.monotonic_ns()}.json"
    plain = {"name": "tiny", "title": "Career coach · 职场教练", "folder": str(folder), "generation": GREEDY.model_dump()}
    file.write_text(json.dumps(plain | job, default=Weights.model_dump), encoding="utf-8")
    out, err = file.with_suffix(".out"), file.with_suffix(".err")
    out.touch()
    err.touch()
    process = forks().Process(target=_main, args=(str(file), str(out), str(err), stdin, environment or {}))
    process.start()
    return Chat(process, out, err)


def _main(job: str, out: str, err: str, stdin: str, environment: dict) -> None:
    os.environ |= environment
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it runs in the background deaf to Ctrl-C
    for number, path, mode in ((0, stdin, os.O_RDONLY), (1, out, os.O_WRONLY | os.O_CREAT), (2, err, os.O_WRONLY | os.O_CREAT)):
        os.dup2(os.open(path, mode), number)
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115  multiprocessing has closed it
    sys.exit(main([job]))


def run(folder: Path, **job: object) -> tuple[int | None, str, str]:
    """(exit code, standard output, standard error) of a chat process."""
    chat = start(folder, **job)
    return chat.wait(), chat.said(), chat.complained()


def start_server(folder: Path, action: str = "page", **job: object) -> Chat:
    """A page or API that answers at its url."""
    port = free_port()
    chat = start(folder, action=action, port=port, **job)
    chat.url = f"http://127.0.0.1:{port}"
    chat.until("Ctrl-C")
    return chat
