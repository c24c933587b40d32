"""Middleware in front of all pages: limits on body size and time, and security headers.

The headers tell browsers to run and load only files of this site.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY = 256 * 1024
IMPORT = 64 * 1024 * 1024
SECONDS = 20.0  # to receive a body
IMPORT_SECONDS = 300.0
SAFE = ("GET", "HEAD", "OPTIONS")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class RequestLimits:
    """Middleware that reads each body, limited in size and time, before the application does."""

    def __init__(
        self, app: App, *, admits: Callable[[str], bool], https: bool = False, seconds: float = SECONDS
    ) -> None:
        """Wrap `app`; `admits` checks from a request's cookies if its sender may send large files."""
        self.app, self.seconds, self.admits = app, seconds, admits
        self.headers = dict(HEADERS)
        if https:
            self.headers["strict-transport-security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, as ASGI asks."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", []))
                names = {name for name, _ in given}
                more = [(n.encode(), v.encode()) for n, v in self.headers.items() if n.encode() not in names]
                if b"cache-control" not in names:
                    more.append((b"cache-control", b"no-store"))
                message = {**message, "headers": given + more}
            await send(message)

        target = scope["path"] + unquote(scope.get("query_string", b"").decode("latin-1"))
        if "\x00" in target:
            await _refuse(sending, 400, "the request contains a NUL character")
            return
        if scope["method"] in SAFE:
            await self._answered(scope, receive, sending)
            return
        imports = scope["path"].endswith("/import") and await run_in_threadpool(self.admits, _cookies(scope))
        try:
            async with asyncio.timeout(IMPORT_SECONDS if imports else self.seconds):
                body = await _body(scope, receive, IMPORT if imports else BODY)
        except TimeoutError:
            await _refuse(sending, 408, "the request took too long to come in")
            return
        except Gone:
            return
        if body is None:
            await _refuse(sending, 413, "the request is too large")
            return
        await self._answered(scope, _again(body, receive), sending)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; if it fails, send an error with the same headers as other replies."""
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception:
            logging.exception("a request failed")  # not its path, which may contain an invitation
            if begun:
                raise
            await _refuse(send, 500, "something went wrong; the server's log says what")


class Limited:
    """Middleware that limits the size and time of each body, for a server without pages."""

    def __init__(self, app: App, *, most: int, seconds: float) -> None:
        self.app, self.most, self.seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, as ASGI asks."""
        if scope["type"] != "http" or scope["method"] in SAFE:
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.seconds):
                body = await _body(scope, receive, self.most)
        except TimeoutError:
            await _refuse(send, 408, "the request took too long to come in")
            return
        except Gone:
            return
        if body is None:
            await _refuse(send, 413, f"the request has more than {self.most} bytes")
            return
        await self.app(scope, _again(body, receive), send)


class Bearer:
    """Middleware that rejects requests without the token (`Authorization: Bearer TOKEN`)."""

    def __init__(self, app: App, *, token: str) -> None:
        self.app, self.wanted = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, as ASGI asks."""
        given = dict(scope.get("headers", [])).get(b"authorization", b"")
        if scope["type"] == "http" and not hmac.compare_digest(given, self.wanted):
            await _refuse(send, 401, "give the server's token as `Authorization: Bearer TOKEN`")
            return
        await self.app(scope, receive, send)


def _cookies(scope: Scope) -> str:
    return "; ".join(v.decode("latin-1") for k, v in scope["headers"] if k == b"cookie")


class Gone(Exception):
    """The client disconnected before its request was complete."""


async def _body(scope: Scope, receive: Receive, most: int) -> bytes | None:
    """Return the whole body, or None if it is too large; raise Gone if it ends early."""
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if length.isdigit() and int(length) > most:
        return None
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        body += message.get("body", b"")
        if len(body) > most:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    waiting = [body]

    async def receiving() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return receiving


async def _refuse(send: Send, status: int, why: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": why.encode()})
