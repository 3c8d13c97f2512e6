"""From prompts to outputs, for every endpoint: bounded, timed, counted, and ended when nobody waits any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass

from tokenvm.async_llm import AsyncLLM
from tokenvm.errors import TokenVMError
from tokenvm.outputs import RequestOutput
from tokenvm.prompts import Prompt
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.serve.refusal import Refusal, refusal_of
from tokenvm.serve.state import ServeState


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt and how to go on from it; a lower `priority` runs first."""

    prompt: Prompt
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""


Indexed = tuple[int, RequestOutput]
"""Which of several prompts, and what has come for it."""


async def complete(state: ServeState, asked: Sequence[Asked]) -> list[RequestOutput]:
    """Answer all prompts and return the outputs in their order. Raises Refusal; then none goes on."""
    limit_s = state.settings.request_timeout_s
    async with _engine(state, asked) as llm, asyncio.timeout(limit_s):
        if len(asked) == 1:
            outputs = [await _complete(llm, asked[0])]
        else:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_complete(llm, one)) for one in asked]
            outputs = [task.result() for task in tasks]
    for output, one in zip(outputs, asked, strict=True):
        state.meter.end(output, one.params, sum(len(each.token_ids) for each in output.outputs))
    return outputs


async def stream(state: ServeState, asked: Sequence[Asked]) -> AsyncGenerator[Indexed, None]:
    """Answer all prompts, yielding what is new whenever the caller asks. Raises Refusal; then none goes on.

    One task iterates and closes it.
    """
    produced, last_s = [0] * len(asked), [0.0] * len(asked)
    deadline_s = asyncio.get_running_loop().time() + state.settings.request_timeout_s
    async with _engine(state, asked) as llm:
        one = len(asked) == 1
        parts = _one(llm, asked[0], deadline_s) if one else _merged(llm, asked, deadline_s)
        async with aclosing(parts):
            async for index, output in parts:
                now_s = asyncio.get_running_loop().time()
                if produced[index]:
                    state.meter.gap(now_s - last_s[index])
                last_s[index] = now_s
                produced[index] += sum(len(one.token_ids) for one in output.outputs)
                if output.finished:
                    state.meter.end(output, asked[index].params, produced[index])
                yield index, output


@asynccontextmanager
async def _engine(state: ServeState, asked: Sequence[Asked]) -> AsyncIterator[AsyncLLM]:
    """Lend an engine that stands, if so much may be asked of it; say errors in HTTP's terms."""
    with _in_terms_of_http(state), state.turnstile.enter(sum(one.params.n for one in asked)):
        yield await state.keeper.standing(state.settings.restart_wait_s)


async def _complete(llm: AsyncLLM, one: Asked) -> RequestOutput:
    return await llm.complete(one.prompt, one.params, priority=one.priority, cache_salt=one.cache_salt)


async def _one(llm: AsyncLLM, one: Asked, deadline_s: float, index: int = 0) -> AsyncGenerator[Indexed, None]:
    """Yield what comes for one prompt. A client that reads slowly is not what the deadline is for."""
    deltas = llm.generate(
        one.prompt, one.params, priority=one.priority, cache_salt=one.cache_salt, delta=True
    )
    async with aclosing(deltas):
        finished = False
        while not finished:
            async with asyncio.timeout_at(deadline_s):
                output = await anext(deltas)
            finished = output.finished
            yield index, output


async def _merged(llm: AsyncLLM, asked: Sequence[Asked], deadline_s: float) -> AsyncGenerator[Indexed, None]:
    """Yield what comes for any prompt. A task reads each, and waits while its last output has not been taken."""
    taken: asyncio.Queue[Indexed | Exception] = asyncio.Queue(maxsize=1)

    async def read(index: int, one: Asked) -> None:
        try:
            async with aclosing(_one(llm, one, deadline_s, index)) as outputs:
                async for output in outputs:
                    await taken.put(output)
        except Exception as error:
            await taken.put(error)

    tasks = [asyncio.create_task(read(index, one)) for index, one in enumerate(asked)]
    try:
        left = len(asked)
        while left:
            found = await taken.get()
            if isinstance(found, Exception):
                raise found
            left -= found[1].finished
            yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def _in_terms_of_http(state: ServeState) -> Iterator[None]:
    try:
        yield
    except (TokenVMError, TimeoutError, ExceptionGroup) as error:
        first = _first(error)
        if isinstance(first, TokenVMError):
            raise refusal_of(first) from None
        if not isinstance(first, TimeoutError):
            raise
        raise Refusal(
            f"the answer was not ready within {state.settings.request_timeout_s:g} s: ask for less, "
            "or have the server started with a longer --request-timeout",
            status=504,
            code="timeout",
            headers={"X-Should-Retry": "false"},
        ) from None


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
