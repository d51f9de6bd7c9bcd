"""/v1/chat/completions, /v1/models and /health, as OpenAI's clients expect them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from tunestation.chat import openai
from tunestation.chat.answers import Busy, Ending
from tunestation.chat.answers import Request as Question
from tunestation.chat.engine import Engine, TooLong
from tunestation.chat.streams import asking
from tunestation.errors import InputError, TunestationError
from tunestation.recipe.schema import Generation

RETRY_SECONDS = "2"
"""When a client that met a busy server should come back."""


class Gone(Exception):
    """The client left before its answer was whole; nobody reads what is raised."""


def build_api(engine: Engine, name: str, generation: Generation) -> FastAPI:
    """The API of `engine` under the model name `name`; with an adapter, `<name>-base` is the untuned model."""
    app = FastAPI(title=name, docs_url=None, redoc_url=None, openapi_url=None)
    models = {name: False} | ({f"{name}-base": True} if engine.has_base else {})
    created = int(time.time())
    _tell_errors(app)

    @app.get("/v1/models")
    async def list_models() -> dict:
        return {"object": "list", "data": [openai.model_card(one, created) for one in models]}

    @app.get("/v1/models/{wanted}")
    async def one_model(wanted: str) -> dict:
        return openai.model_card(_known(wanted, models), created)

    @app.get("/health")
    async def health() -> JSONResponse:
        running, waiting = engine.scheduler.load()
        failure = engine.scheduler.failure
        told = {"status": "failing" if failure else "ok", "error": failure, "running": running, "waiting": waiting}
        return JSONResponse(told, 503 if failure else 200)

    @app.post("/v1/chat/completions", response_model=None)
    async def complete(asked: openai.ChatRequest, request: Request) -> JSONResponse | StreamingResponse:
        question = asked.to_request(generation, models[_known(asked.model, models)])
        if question.messages[-1]["role"] != "user":
            raise InputError("The last message must be the user's.")
        reply = openai.Reply(asked.model)
        if not asked.stream:
            return JSONResponse(reply.whole(*await _whole(engine, question, request)))
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        chunks = _chunks(engine, question, reply, usage)
        first = await anext(chunks)  # what is wrong with the question is said with a status, before the stream begins
        return StreamingResponse(_events(first, chunks), media_type="text/event-stream")

    return app


def _known(name: str, models: dict[str, bool]) -> str:
    if name not in models:
        raise HTTPException(404, f"There is no model '{name}' here, but: {', '.join(models)}.")
    return name


async def _whole(engine: Engine, question: Question, request: Request) -> tuple[str, Ending]:
    """(text, ending) of an answer; it is cancelled when the client leaves."""
    gone = asyncio.create_task(_until_gone(request))
    collected = asyncio.create_task(_collect(engine, question))
    try:
        await asyncio.wait((gone, collected), return_when=asyncio.FIRST_COMPLETED)
        if not collected.done():
            raise Gone
        return collected.result()
    finally:
        gone.cancel()
        collected.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _collect(engine: Engine, question: Question) -> tuple[str, Ending]:
    pieces = []
    async with asking(engine, {"": question}) as asked:
        while isinstance(event := (await asked.events.get())[1], str):
            pieces.append(event)
    if event.error:
        raise event.error
    return "".join(pieces), event


async def _chunks(engine: Engine, question: Question, reply: openai.Reply, usage: bool) -> AsyncIterator[dict]:
    async with asking(engine, {"": question}) as asked:
        yield reply.chunk({"role": "assistant", "content": ""})
        while isinstance(event := (await asked.events.get())[1], str):
            yield reply.chunk({"content": event})
    if event.error:
        yield openai.error(str(event.error), "server_error")
        return
    yield reply.chunk({}, event.reason)
    if usage:
        yield reply.cost(event)


async def _events(first: dict, chunks: AsyncIterator[dict]) -> AsyncIterator[str]:
    try:
        yield _event(first)
        async for chunk in chunks:
            yield _event(chunk)
        yield "data: [DONE]\n\n"
    finally:
        await chunks.aclose()


def _event(chunk: dict) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


def _tell_errors(app: FastAPI) -> None:
    """Every error in OpenAI's shape, whoever raises it."""

    @app.exception_handler(TunestationError)
    async def ours(_: Request, error: TunestationError) -> JSONResponse:
        if isinstance(error, Busy):
            return JSONResponse(openai.error(str(error), "rate_limit_error", code="busy"), 429, {"Retry-After": RETRY_SECONDS})
        if isinstance(error, InputError):
            code = "context_length_exceeded" if isinstance(error, TooLong) else None
            return JSONResponse(openai.error(str(error), param="messages", code=code), 400)
        return JSONResponse(openai.error(str(error), "server_error"), 500)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = max(error.errors(), key=lambda one: len(one["loc"]))  # of the kinds that a value may have, the one it came closest to
        if first["type"] == "json_invalid":
            return JSONResponse(openai.error(f"The body is not JSON: {first['ctx']['error']}."), 400)
        param = ".".join(str(part) for part in first["loc"][1:] if "[" not in str(part))
        what = "is not served here" if first["type"] == "extra_forbidden" else first["msg"]
        return JSONResponse(openai.error(f"{param or 'The body'}: {what}.", param=param or None), 400)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        code = "model_not_found" if error.status_code == 404 and "model" in error.detail else None
        return JSONResponse(openai.error(error.detail, code=code), error.status_code, error.headers)

    @app.exception_handler(Gone)
    async def gone(_: Request, __: Gone) -> JSONResponse:
        return JSONResponse(openai.error("The client left."), 499)
