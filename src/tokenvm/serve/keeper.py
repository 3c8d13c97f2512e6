"""Keeps an engine running: makes another when one dies, and lets requests wait for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self

from tokenvm.async_llm import AsyncLLM
from tokenvm.errors import EngineDeadError, TokenVMError

LOG: Final = logging.getLogger("tokenvm.serve")

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 30.0
"""Pauses before a restart double from the first to the longest while restarts fail."""

DEATH_PAUSE_S: Final = 1.0
"""While engines stand and die young they double up to this only: a start takes long enough by itself."""

YOUNG_S: Final = 10.0

Make = Callable[[], Awaitable[AsyncLLM]]


class Keeper:
    """An AsyncLLM that is made again whenever its engine's process ends; `async with` it. One event loop uses it.

    `make` starts an AsyncLLM. What it raises at the first start is raised by the `async with`.
    """

    def __init__(self, make: Make) -> None:
        self._make = make
        self._llm: AsyncLLM | None = None
        self._stands = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self.restarts = 0

    async def __aenter__(self) -> Self:
        self._begin(await self._make())
        self._watch = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._llm is not None:
            await self._llm.shutdown()

    @property
    def ready(self) -> bool:
        """Whether an engine stands."""
        return self._stands.is_set() and self.llm.alive

    @property
    def llm(self) -> AsyncLLM:
        """The newest AsyncLLM, whose engine may have died; its tokenizer and plan hold all the same."""
        assert self._llm is not None, "a Keeper is used inside its `async with`"
        return self._llm

    async def standing(self, wait_s: float) -> AsyncLLM:
        """Return an AsyncLLM whose engine stands, waiting so long for it. Raises EngineDeadError."""
        if not self.ready:
            try:
                async with asyncio.timeout(wait_s):
                    while not self.ready:
                        await self._stands.wait()
                        await asyncio.sleep(0)  # a death that the keeper has not seen yet
            except TimeoutError:
                raise EngineDeadError("no engine stands yet") from None
        return self.llm

    async def stats(self) -> dict[str, Any]:
        """Return the engine's counters and how often it was restarted. Raises EngineDeadError."""
        return {**await self.llm.stats(), "engine_restarts": self.restarts}

    def _begin(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._stands.set()

    async def _keep(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            born_s = asyncio.get_running_loop().time()
            error = await self.llm.ended()
            self._stands.clear()
            LOG.error("engine died, restarting: %s", error)
            await self.llm.shutdown()
            old = asyncio.get_running_loop().time() - born_s >= YOUNG_S
            pause_s = FIRST_PAUSE_S if old else min(2 * pause_s, DEATH_PAUSE_S)
            await self._restart(pause_s)

    async def _restart(self, pause_s: float) -> None:
        """Make engines until one stands."""
        while not self._stands.is_set():
            await asyncio.sleep(pause_s)
            try:
                self._begin(await self._make())
                self.restarts += 1
                LOG.warning("engine restarted")
            except Exception as error:  # what the system refuses too: whoever keeps must not end
                trace = None if isinstance(error, TokenVMError) else error
                LOG.error("the engine cannot be restarted, trying again: %s", error, exc_info=trace)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
