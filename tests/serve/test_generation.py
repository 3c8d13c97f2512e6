"""Deadlines, failures and clients that stop reading, on an engine that does what a test says."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from tokenvm import RequestError, RequestOutput, SamplingParams
from tokenvm.outputs import CompletionOutput, RequestMetrics
from tokenvm.serve import wire as wire_room
from tokenvm.serve.generation import Asked, complete, stream
from tokenvm.serve.meter import Meter
from tokenvm.serve.refusal import Refusal
from tokenvm.serve.settings import ServeSettings
from tokenvm.serve.state import ServeState
from tokenvm.serve.turnstile import Turnstile
from tokenvm.serve.wire import ClientGone, EventStream, while_connected

Wait = Callable[[int], Awaitable[None]]


def output(token: int, finished: bool) -> RequestOutput:
    one = CompletionOutput(0, "x", [token], finish_reason="length" if finished else None)
    return RequestOutput("r", None, [1, 2], [one], finished, RequestMetrics(0.1, 0.2) if finished else None)


class Engine:
    """Says three tokens to every prompt, waiting before each as `wait` does; the prompt [0] is refused."""

    def __init__(self, wait: Wait) -> None:
        self._wait = wait
        self.open = 0

    async def standing(self, _wait_s: float) -> "Engine":
        return self

    async def complete(self, prompt: Any, *_rest: Any, **_more: Any) -> RequestOutput:
        return [one async for one in self.generate(prompt)][-1]

    async def generate(self, prompt: Any, *_rest: Any, **_more: Any) -> AsyncGenerator[RequestOutput, None]:
        self.open += 1
        try:
            for at in range(3):
                await self._wait(at)
                if prompt["prompt_token_ids"] == [0]:
                    raise RequestError("SamplingParams.top_k=5 is not possible: leave it out")
                yield output(at, at == 2)
        finally:
            self.open -= 1


def state_with(engine: Engine, timeout_s: float = 60.0) -> ServeState:
    settings = ServeSettings("m", request_timeout_s=timeout_s)
    keeper: Any = engine
    return ServeState(keeper, settings, Turnstile(8), Meter())


def asked(*prompts: int) -> list[Asked]:
    return [Asked({"prompt_token_ids": [prompt]}, SamplingParams()) for prompt in prompts]


async def at_once(_at: int) -> None:
    await asyncio.sleep(0)


async def never(at: int) -> None:
    if at:
        await asyncio.Event().wait()


def test_several_prompts_are_answered_whole_and_streamed() -> None:
    async def run() -> None:
        state = state_with(Engine(at_once))
        assert [one.finished for one in await complete(state, asked(1, 2, 3))] == [True] * 3
        told: dict[int, list[int]] = {0: [], 1: [], 2: []}
        async for index, one in stream(state, asked(1, 2, 3)):
            told[index] += one.outputs[0].token_ids
        assert list(told.values()) == [[0, 1, 2]] * 3
        assert (state.meter.requests, state.turnstile.inside) == (6, 0)

    asyncio.run(run())


@pytest.mark.parametrize("prompts", [(1,), (1, 2)])
def test_what_takes_too_long_is_504_and_leaves_nothing(prompts: tuple[int, ...]) -> None:
    async def run() -> None:
        engine = Engine(never)
        state = state_with(engine, 0.01)
        with pytest.raises(Refusal, match=r"within 0\.01 s") as late:
            await complete(state, asked(*prompts))
        assert (late.value.status, late.value.code) == (504, "timeout")
        got: list[Any] = []
        with pytest.raises(Refusal, match="not ready"):
            await rest(stream(state, asked(*prompts)), got)
        assert len(got) == len(prompts), "what came in time was handed over"
        assert (engine.open, state.turnstile.inside) == (0, 0)

    asyncio.run(run())


@pytest.mark.parametrize("prompts", [(0,), (1, 0, 2)])
def test_one_bad_prompt_ends_all_and_names_the_field(prompts: tuple[int, ...]) -> None:
    async def run() -> None:
        engine = Engine(at_once)
        state = state_with(engine)
        for way in (complete(state, asked(*prompts)), rest(stream(state, asked(*prompts)))):
            with pytest.raises(Refusal, match="leave it out") as wrong:
                await way
            assert (wrong.value.status, wrong.value.param) == (400, "top_k")
        assert (engine.open, state.turnstile.inside) == (0, 0)

    asyncio.run(run())


async def rest(outputs: AsyncGenerator[Any, None], into: list[Any] | None = None) -> None:
    async for one in outputs:
        if into is not None:
            into.append(one)


@pytest.mark.parametrize("prompts", [(1,), (1, 2)])
def test_a_stream_that_is_closed_ends_its_requests(prompts: tuple[int, ...]) -> None:
    async def run() -> None:
        engine = Engine(at_once)
        state = state_with(engine)
        async with aclosing(stream(state, asked(*prompts))) as outputs:
            await anext(outputs)
            assert engine.open == len(prompts)
        assert (engine.open, state.turnstile.inside) == (0, 0)

    asyncio.run(run())


class Wire:
    """The two ends that ASGI gives; `gone` closes the client's."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.sent: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


def test_who_goes_away_ends_the_work() -> None:
    async def run() -> None:
        wire, ended = Wire(), []

        async def work() -> None:
            try:
                wire.gone.set()
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        with pytest.raises(ClientGone):
            await while_connected(wire.receive, work())
        assert ended == [True]

    asyncio.run(run())


async def events(*steps: Any) -> AsyncGenerator[bytes, None]:
    for step in steps:
        if isinstance(step, Exception):
            raise step
        if isinstance(step, asyncio.Event):
            await step.wait()
        else:
            yield step


def test_a_refusal_is_the_answer_before_the_first_event_and_an_event_after_it() -> None:
    async def run() -> None:
        refusal = Refusal("no", status=429, headers={"Retry-After": "2"})
        first, later = Wire(), Wire()
        await EventStream(events(refusal), 60)({"type": "http"}, first.receive, first.send)
        assert first.sent[0]["status"] == 429
        assert (b"retry-after", b"2") in first.sent[0]["headers"]
        await EventStream(events(b"data: 1\n\n", refusal), 60)({"type": "http"}, later.receive, later.send)
        assert later.sent[0]["status"] == 200
        assert b'"rate_limit_error"' in later.body
        assert later.body.endswith(b"data: [DONE]\n\n")

    asyncio.run(run())


def test_a_stream_ends_at_its_limit_and_when_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_room, "LATE_S", 0.0)

    async def run() -> None:
        slow = Wire()
        await EventStream(events(b"a", asyncio.Event()), 0.01)({"type": "http"}, slow.receive, slow.send)
        assert slow.body == b"a"
        left = Wire()
        left.gone.set()
        await EventStream(events(asyncio.Event()), 60)({"type": "http"}, left.receive, left.send)
        assert left.sent == []

    asyncio.run(run())
