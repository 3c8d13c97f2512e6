"""Questions that the front process has asked and the engine has not answered yet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from tokenvm.errors import EngineDeadError


class Questions:
    """Numbers questions and hands each answer to who waits for it. Used from one event loop."""

    def __init__(self) -> None:
        self._count = 0
        self._open: dict[int, asyncio.Future[dict[str, Any]]] = {}

    def begin(self) -> int:
        """Return the number of a new question."""
        self._count += 1
        self._open[self._count] = asyncio.get_running_loop().create_future()
        return self._count

    async def answer(self, number: int) -> dict[str, Any]:
        """Wait for the answer; raises what `fail_all` was given."""
        return await self._open[number]

    def forget(self, number: int) -> None:
        """Nobody waits for this answer any more."""
        del self._open[number]

    def hear(self, number: int, stats: dict[str, Any]) -> None:
        """The engine has answered."""
        if number in self._open and not self._open[number].done():
            self._open[number].set_result(stats)

    def fail_all(self, error: EngineDeadError) -> None:
        """No answer comes any more."""
        for answer in self._open.values():
            if not answer.done():
                answer.set_exception(EngineDeadError(*error.args))


async def in_time(answer: Awaitable[object], timeout_s: float) -> None:
    """Wait for an answer of the engine; EngineDeadError where it does not come in time."""
    try:
        await asyncio.wait_for(answer, timeout_s)
    except TimeoutError:
        raise EngineDeadError(
            f"the engine process has not answered for {timeout_s:g} s: end it and make another AsyncLLM"
        ) from None
