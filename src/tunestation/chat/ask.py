"""`invoke ask`: answers on standard output, for people and for scripts."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from queue import SimpleQueue

from tunestation.chat.answers import Ending, Request
from tunestation.chat.engine import Engine
from tunestation.chat.main import ChatJob
from tunestation.errors import InputError

Events = SimpleQueue


def ask(engine: Engine, job: ChatJob) -> None:
    """Answer all prompts together, and print them in their order as they grow. Raises what made one fail.

    Raises InputError with every prompt that leaves no room for an answer; nothing is asked then.
    """
    requests = _requests(engine, job)
    asked = [(prompt, _begin(engine, request)) for prompt, request in zip(job.prompts, requests, strict=True)]
    for prompt, events in asked:
        if job.as_json:
            text, ending = _whole(events)
            print(json.dumps(_told(prompt, text, ending), ensure_ascii=False), flush=True)
            continue
        if len(asked) > 1:
            print(f"> {prompt}")
        if _print_growing(events).reason == "length":
            print(f"note: the answer was cut at {job.generation.max_new_tokens} tokens or the end of the context.", file=sys.stderr)


def _requests(engine: Engine, job: ChatJob) -> list[Request]:
    system = [{"role": "system", "content": job.system}] if job.system else []
    requests, problems = [], []
    for prompt in job.prompts:
        try:
            messages, _ = engine.fit([*system, {"role": "user", "content": prompt}], job.generation.max_new_tokens)
            requests.append(Request(tuple(messages), job.generation, job.seed))
        except InputError as error:
            problems += [replace(problem, where=f"prompt {prompt[:40]!r}") for problem in error.problems]
    if problems:
        raise InputError(problems=problems)
    return requests


def _begin(engine: Engine, request: Request) -> Events:
    events: Events = SimpleQueue()
    engine.submit(request, events.put)
    return events


def _print_growing(events: Events) -> Ending:
    while isinstance(event := events.get(), str):
        print(event, end="", flush=True)
    print(flush=True)
    return _successful(event)


def _whole(events: Events) -> tuple[str, Ending]:
    pieces = []
    while isinstance(event := events.get(), str):
        pieces.append(event)
    return "".join(pieces), _successful(event)


def _successful(ending: Ending) -> Ending:
    if ending.error:
        raise ending.error
    return ending


def _told(prompt: str, text: str, ending: Ending) -> dict:
    tokens = {"prompt_tokens": ending.prompt_tokens, "completion_tokens": ending.completion_tokens}
    return {"prompt": prompt, "answer": text, "finish_reason": ending.reason, **tokens, "seconds": round(ending.seconds, 3)}
