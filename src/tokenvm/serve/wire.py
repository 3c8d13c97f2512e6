"""Answers as bytes: JSON by msgspec, and server-sent events that end when the client has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Final, TypeVar

import msgspec
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from tokenvm.serve.refusal import Refusal

T = TypeVar("T")

DONE: Final = b"data: [DONE]\n\n"
CLIENT_GONE: Final = 499
"""The status of an answer that nobody waits for; only logs see it."""

LATE_S: Final = 2.0
"""How long a stream that took too long has for saying so."""

_ENCODER: Final = msgspec.json.Encoder()


class Json(Response):
    """A JSON answer. Text that is not valid Unicode cannot be in it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode plain values."""
        return encode(content)


def encode(content: Any) -> bytes:
    """Return plain values as JSON."""
    return _ENCODER.encode(content)


def data_event(content: Any) -> bytes:
    """Return plain values as one server-sent event."""
    return b"data: " + encode(content) + b"\n\n"


class ClientGone(Exception):  # noqa: N818 - an end, not an error
    """The client has closed its connection; nobody waits for the answer."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` does. Cancels it, and raises ClientGone, once the client has closed its connection."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        await _end(task, gone)


class EventStream(Response):
    """Server-sent events, written as fast as the client reads and no faster; `events` are whole, in bytes.

    A Refusal that comes before the first event is the answer; one that comes later is the last event. One task iterates
    and closes `events`: when they end, when the client has gone, or `LATE_S` after `limit_s`.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], limit_s: float, headers: Mapping[str, str] | None = None
    ) -> None:
        self._events = events
        self._limit_s = limit_s
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI has it."""
        feed = asyncio.create_task(self._feed(scope, receive, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            limit_s = self._limit_s + LATE_S
            await asyncio.wait((feed, gone), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if feed.done():
                feed.result()
        finally:
            await _end(feed, gone)

    async def _feed(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events) as events:
            try:
                first = await anext(events)
            except Refusal as refusal:
                answer = Json(refusal.as_dict(), refusal.status, refusal.headers)
                await answer(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _write(send, first)
            try:
                async for event in events:
                    await _write(send, event)
            except Refusal as refusal:
                await _write(send, data_event(refusal.as_dict()) + DONE)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _write(send: Send, event: bytes) -> None:
    await send({"type": "http.response.body", "body": event, "more_body": True})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel what still runs and wait for it, so that nothing is left behind."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
