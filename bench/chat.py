"""Many clients at once on the API of a finished recipe: how many answers are lost, how long they take, how many tokens a second.

    python bench/chat.py quickstart --clients 50 --seconds 120 --out FILE

Starts `invoke serve RECIPE` on a port of 127.0.0.1, or takes the API at `--url`, whose model is called RECIPE. Every client asks one
question after another, every second one streamed. An answer is lost if it is an error or empty; a busy server's 429 is counted apart.
`different` counts answers that are not what the same question gets alone: bfloat16 rounds a little differently in company.
Needs `openai` of docker/requirements-dev.txt.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import httpx
import openai
import psutil

PROJECT = Path(__file__).resolve().parents[1]
QUESTIONS = ["Who are you?", "What is 8 + 5?", "你是谁？", "法国的首都是哪里？", "Count from 3 to 9.", "What is the opposite of hot?"]
READY_SECONDS = 300


def main() -> None:
    """Serve, load, stop, and write down what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--url", help="of an API that runs already, as http://127.0.0.1:8000/v1")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with nullcontext(args.url) if args.url else _served(args.recipe) as url:
        row = asyncio.run(_load(url, args.recipe, args.clients, args.seconds))
    told = {"what": __doc__.splitlines()[0], "machine": _machine(), "rows": [row]}
    text = json.dumps(told, ensure_ascii=False, indent=1)
    print(text)
    if args.out:
        args.out.write_text(f"{text}\n", encoding="utf-8")


@contextmanager
def _served(recipe: str) -> Iterator[str]:
    """The address of the recipe's API while it runs."""
    port = _free_port()
    command = [sys.executable, "-m", "invoke", "serve", recipe, "--port", str(port)]
    server = subprocess.Popen(command, cwd=PROJECT, env={**os.environ, "TUNE_RUNNER": "here"})
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_ready(url: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            httpx.get(url, trust_env=False).raise_for_status()
            return
        except httpx.HTTPError:
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit("The server did not start.")
            time.sleep(0.5)


async def _load(url: str, model: str, clients: int, seconds: float) -> dict:
    """What `clients` on the API at `url` met in `seconds`."""
    http = httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_connections=clients), timeout=60)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=http) as client:
        alone = {question: (await _ask(client, model, question, False))[0] for question in QUESTIONS}
        began, seen = time.monotonic(), Seen()
        await asyncio.gather(*(_talk(client, model, number, alone, began + seconds, seen) for number in range(clients)))
        taken = time.monotonic() - began
    return {"case": f"{clients} clients for {seconds:.0f} s on {model}, every second one streamed"} | seen.row(taken)


@dataclass
class Seen:
    """What became of all questions."""

    outcomes: Counter = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    """Seconds, of each question that was answered."""
    tokens: int = 0

    def row(self, taken: float) -> dict:
        """The result after `taken` seconds."""
        waits = sorted(self.waits)
        return {
            "answered": self.outcomes["answered"],
            "lost": sum(count for name, count in self.outcomes.items() if name not in ("answered", "busy", "different")),
            "outcomes": dict(self.outcomes),
            "answers_per_second": round(self.outcomes["answered"] / taken, 1),
            "tokens_per_second": round(self.tokens / taken, 1),
            "seconds_median": round(statistics.median(waits), 3),
            "seconds_95": round(waits[int(0.95 * len(waits))], 3),
            "seconds_longest": round(waits[-1], 3),
        }


async def _talk(client: openai.AsyncOpenAI, model: str, number: int, alone: dict[str, str], end: float, seen: Seen) -> None:
    """One client, asking until `end`; `alone` are the answers that each question gets by itself."""
    for turn in count(number):
        if time.monotonic() >= end:
            return
        question, began = QUESTIONS[turn % len(QUESTIONS)], time.monotonic()
        try:
            text, cost = await _ask(client, model, question, stream=bool(turn % 2))
        except openai.RateLimitError:
            seen.outcomes["busy"] += 1
        except openai.OpenAIError as error:
            seen.outcomes[type(error).__name__] += 1
        else:
            seen.waits.append(time.monotonic() - began)
            seen.tokens += cost
            seen.outcomes.update(answered=1, empty=not text, different=text != alone[question])


async def _ask(client: openai.AsyncOpenAI, model: str, question: str, stream: bool) -> tuple[str, int]:
    """The answer, and its tokens."""
    request = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 64}
    if not stream:
        answer = await client.chat.completions.create(**request)
        return answer.choices[0].message.content, answer.usage.completion_tokens
    text, cost = "", 0
    async for chunk in await client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}):
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        cost = chunk.usage.completion_tokens if chunk.usage else cost
    return text, cost


def _machine() -> dict:
    from importlib.metadata import version

    packages = ("torch", "transformers", "fastapi", "uvicorn", "openai")
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "gpu": None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
