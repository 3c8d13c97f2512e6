"""`GET /metrics`, and the same on a port of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client.core import Metric

from tokenvm.errors import EngineDeadError
from tokenvm.serve.exporter import CONTENT_TYPE, as_text, engine_families, server_families, start_exporter
from tokenvm.serve.settings import VLLM
from tokenvm.serve.state import ServeState
from tokenvm.serve.vllm_names import VllmNames

SCRAPE_S: Final = 2.0
"""How long a scrape waits for an engine in a long step; after that it gets the figures before."""


class Metrics:
    """All metrics of a server, with the newest counters that its engine has told. One event loop uses it."""

    def __init__(self, state: ServeState) -> None:
        self._state = state
        self._stats: dict[str, Any] = {}
        self._asked: asyncio.Task[dict[str, Any]] | None = None
        self._vllm = None
        if state.settings.metrics_compat == VLLM:
            self._vllm = VllmNames(state.meter, state.settings.model)

    async def families(self) -> list[Metric]:
        """Return them as they are now. One question at a time is open, however many scrape."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(self._ask())
        await asyncio.wait((self._asked,), timeout=SCRAPE_S)
        return list(self._families())

    def _families(self) -> Iterator[Metric]:
        keeper = self._state.keeper
        yield from engine_families(self._stats)
        yield from server_families(self._state.meter, keeper.restarts, keeper.ready)
        if self._vllm is not None:
            yield from self._vllm.families(self._stats)

    async def _ask(self) -> dict[str, Any]:
        with suppress(EngineDeadError):  # then the figures before stand
            self._stats = await self._state.keeper.stats()
        return self._stats


def router() -> APIRouter:
    """Return the route."""
    routes = APIRouter()

    @routes.get("/metrics", summary="Metrics in Prometheus' text", response_class=Response)
    async def metrics(request: Request) -> Response:
        found: Metrics = request.app.state.metrics
        return Response(as_text(await found.families()), media_type=CONTENT_TYPE)

    return routes


def export_on_port(metrics: Metrics, port: int) -> None:
    """Answer on 127.0.0.1 too, from a thread that asks this event loop. A taken port is a warning; 0 is none."""
    loop = asyncio.get_running_loop()

    def ask() -> list[Metric]:
        return asyncio.run_coroutine_threadsafe(metrics.families(), loop).result(2 * SCRAPE_S)

    if port:
        start_exporter(ask, port)
