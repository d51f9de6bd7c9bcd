"""Who may ask, and what a browser may load: an ASGI middleware around everything that is served."""

from __future__ import annotations

import asyncio
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunestation.chat.openai import error

LOCAL = ("127.0.0.1", "localhost", "::1")
LARGEST_BODY = 8 * 2**20
"""Bytes of a request."""
# An answer may hold an image or a link of any address: the browser loads nothing but what this server sends.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; media-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}


class Guard:
    """Without a password only this machine's own names are answered (DNS rebinding); with one, /v1 wants it as bearer token."""

    def __init__(self, app: ASGIApp, password: str | None):
        self._app, self._password = app, password
        self._guesses = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        refused = self._refusal(scope["path"], Headers(scope=scope))
        if refused and refused.status_code == 401:
            await _delay(self._guesses)
        return await (refused or self._app)(scope, receive, _with_headers(send))

    def _refusal(self, path: str, headers: Headers) -> JSONResponse | None:
        if not self._password and _host(headers) not in LOCAL:
            return JSONResponse(error("This server answers to 127.0.0.1 and localhost alone; --public opens it."), 403)
        if self._password and path.startswith("/v1/") and not same(_bearer(headers), self._password):
            told = error("The API key is missing or wrong: send the password as bearer token.", code="invalid_api_key")
            return JSONResponse(told, 401, {"WWW-Authenticate": "Bearer"})
        if "transfer-encoding" in headers:
            return JSONResponse(error("A request must tell its length: send Content-Length."), 411)
        if int(headers.get("content-length", "0") or 0) > LARGEST_BODY:
            return JSONResponse(error(f"A request may have {LARGEST_BODY:,} bytes."), 413)
        return None


def _host(headers: Headers) -> str | None:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname
    except ValueError:  # an opening bracket alone
        return None


def _bearer(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def same(given: str, password: str) -> bool:
    """Whether both are equal, in a time that does not tell how much of them is."""
    return hmac.compare_digest(given.encode(), password.encode())


async def _delay(guesses: asyncio.Lock) -> None:
    """A wrong password is told a second later, one after the other: so many a day can be guessed, however many ask at once."""
    async with guesses:
        await asyncio.sleep(1)


def login(password: str):
    """What the page asks about a user name and password; any name will do."""
    guesses = asyncio.Lock()

    async def allowed(_name: str, given: str) -> bool:
        right = same(given, password)
        if not right:
            await _delay(guesses)
        return right

    return allowed


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return sending
