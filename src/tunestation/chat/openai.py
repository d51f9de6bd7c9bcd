"""The part of OpenAI's chat completions that is served here: requests, answers and errors in its JSON.

What is not served is refused by name, never ignored. `top_k` and `repetition_penalty` are additions, named as in vLLM.
Reference: OpenAI API reference, "Chat Completions".
"""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tunestation.chat.answers import Ending, Request
from tunestation.recipe.schema import Generation


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _sendable(text: str) -> str:
    """Half of a surrogate pair is no character: JSON can name it, a tokenizer cannot read it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair") from None
    return text


Content = Annotated[str, AfterValidator(_sendable)]
Text = Annotated[Content, Field(min_length=1)]


class TextPart(_Strict):
    """One part of a message; only texts can be read."""

    type: Literal["text"]
    text: Content


class ChatMessage(_Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | list[TextPart]
    name: str | None = None
    type: Literal["text"] | None = None
    """No part of OpenAI's messages, but lm-evaluation-harness sends it."""

    def plain(self) -> dict:
        """As the chat template takes it; `developer` is the newer name of `system`."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(_Strict):
    """What a streamed answer carries besides its text."""

    include_usage: bool = False


class ChatRequest(_Strict):
    """The body of POST /v1/chat/completions. What is None takes the recipe's `chat.generation`."""

    model: Content
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    max_completion_tokens: Annotated[int, Field(gt=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    """What torch takes as a seed."""
    stop: Text | list[Text] | None = None
    user: str | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None

    def to_request(self, defaults: Generation, base: bool) -> Request:
        """The same for the engine."""
        longest = self.max_completion_tokens or self.max_tokens
        wanted = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "repetition_penalty")}
        chosen = {name: value for name, value in (wanted | {"max_new_tokens": longest}).items() if value is not None}
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        messages = tuple(message.plain() for message in self.messages)
        return Request(messages, defaults.model_copy(update=chosen), self.seed, stop, base)


class Reply:
    """One answer on its way out, whole or in chunks."""

    def __init__(self, model: str):
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, text: str, ending: Ending) -> dict:
        """A chat completion."""
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": ending.reason, "logprobs": None}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage(ending)}

    def chunk(self, delta: dict, reason: str | None = None) -> dict:
        """A chunk of a streamed completion."""
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def cost(self, ending: Ending) -> dict:
        """The last chunk, which counts tokens; sent on demand."""
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage(ending)}


def usage(ending: Ending) -> dict:
    """Tokens of the prompt and of the answer."""
    prompt, answer = ending.prompt_tokens, ending.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def error(message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None) -> dict:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def model_card(name: str, created: int) -> dict:
    """An entry of /v1/models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "tunestation"}
