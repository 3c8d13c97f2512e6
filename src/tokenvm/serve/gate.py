"""What happens to every request before and after its endpoint: an id, a key, a bound on its body, a line in the log."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Collection
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenvm.serve.keys import Keys
from tokenvm.serve.meter import Meter
from tokenvm.serve.refusal import Refusal
from tokenvm.serve.settings import ServeSettings
from tokenvm.serve.wire import CLIENT_GONE, ClientGone, Json

LOG: Final = logging.getLogger("tokenvm.serve.access")

OPEN_TO_ALL: Final = ("/health", "/ready")
"""Paths that need no key: who watches over a server asks them."""

UPLOADS: Final = "/v1/files"
_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class Gate:
    """An ASGI application around another. `scope["state"]["request_id"]` is the id that it gives."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, meter: Meter) -> None:
        self._app = app
        self._settings = settings
        self._keys = Keys(settings.api_keys)
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        passage = _Passage(scope, send)
        try:
            await self._admit(scope, receive, passage)
        except ClientGone:
            passage.status = CLIENT_GONE
        except asyncio.CancelledError:
            text = "the server is stopping and this took too long: ask again elsewhere or later"
            await passage.refuse(Refusal(text, status=503, code="stopping"))
            raise
        except Exception:
            LOG.exception("request failed", extra={"fields": {"request_id": passage.id}})
            await passage.refuse(Refusal("the server failed, and says why in its log", status=500))
        finally:
            self._meter.answer(scope["method"], _route(scope), passage.status or CLIENT_GONE)
            LOG.info("request", extra={"fields": passage.as_dict()})

    async def _admit(self, scope: Scope, receive: Receive, passage: _Passage) -> None:
        headers = Headers(scope=scope)
        path = scope["path"]
        if not _may_ask(headers, self._settings.cors_origins):
            text = f"the page of {headers['origin']!r:.80} may not ask: name it with --cors-origin"
            await passage.refuse(Refusal(text, status=403, code="origin_not_allowed"))
            return
        if path not in OPEN_TO_ALL and not self._keys.accept(headers.get("authorization", "")):
            text = "the API key is missing or wrong: send it as `Authorization: Bearer KEY`"
            await passage.refuse(Refusal(text, status=401, code="invalid_api_key"))
            return
        settings = self._settings
        most = settings.max_upload_bytes if path == UPLOADS else settings.max_body_bytes
        size = headers.get("content-length", "0")
        if size.isdecimal() and int(size) > most:
            await passage.refuse(Refusal(_too_large(most), status=413, code="body_too_large"))
            return
        await self._app(scope, _bounded(receive, most), passage.send)


class _Passage:
    """One request on its way through."""

    def __init__(self, scope: Scope, send: Send) -> None:
        asked = Headers(scope=scope).get("x-request-id", "")
        self.id = asked if _ID.fullmatch(asked) else uuid.uuid4().hex
        self.status = 0
        self._scope = scope
        self._send = send
        self._begin_s = time.monotonic()
        scope.setdefault("state", {})["request_id"] = self.id

    async def send(self, message: Message) -> None:
        """Pass a message on, with the request's id in its headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self.id
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with an error, unless an answer has begun."""
        if not self.status:
            await Json(refusal.as_dict(), refusal.status, refusal.headers)(self._scope, _nothing, self.send)

    def as_dict(self) -> dict[str, Any]:
        """Return what the log says of it: never what was asked or answered, and no key."""
        return {
            "request_id": self.id,
            "method": self._scope["method"],
            "path": self._scope["path"],
            "status": self.status or CLIENT_GONE,
            "ms": round((time.monotonic() - self._begin_s) * 1000, 1),
        }


def _may_ask(headers: Headers, named: Collection[str]) -> bool:
    """Whether no web page asks, or one of this server's own address, or one that is named."""
    origin = headers.get("origin")
    if origin is None or origin in named or "*" in named:
        return True
    try:
        host = urlsplit(origin).netloc
    except ValueError:
        return False
    return bool(host) and host.lower() == headers.get("host", "").lower()


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def _bounded(receive: Receive, most: int) -> Receive:
    """Return a `receive` that ends a body of no announced length at its bound."""
    got = 0

    async def counted() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > most:
            raise HTTPException(413, _too_large(most))
        return message

    return counted


def _too_large(most: int) -> str:
    return f"the body is larger than {most} bytes: send less at once, or raise --max-body"


def _route(scope: Scope) -> str:
    """Return the path of the route that was found: what clients make up must not fill the metrics."""
    return str(getattr(scope.get("route"), "path", "none"))
