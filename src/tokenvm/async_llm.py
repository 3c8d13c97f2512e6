"""AsyncLLM: many requests at once, each an async iteration, over an engine in a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tokenvm.clock import RealClock
from tokenvm.collect import Collector
from tokenvm.config import MemoryConfig
from tokenvm.engine_process.connection import Connection
from tokenvm.engine_process.in_flight import InFlight
from tokenvm.engine_process.messages import (
    Abort,
    Accepted,
    Ask,
    Ready,
    Refused,
    Start,
    Stepped,
    Stop,
    Submit,
    ToFront,
    Told,
    error_from,
)
from tokenvm.engine_process.questions import Questions, in_time
from tokenvm.engine_process.reading import read_aside
from tokenvm.engine_process.requests import Requests
from tokenvm.errors import EngineDeadError, RequestError, TokenVMError
from tokenvm.models.progress import Report, silent
from tokenvm.outputs import RequestOutput
from tokenvm.prompts import Prompt, ready, salt_of
from tokenvm.schedule.request import Request
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.tokenizer import Tokenizer

HEALTH_S: Final = 30.0


class AsyncLLM:
    """A model behind an event loop: the same arguments, outputs and bits as `LLM`; it warms up unless told not to.

    The engine steps in a process of its own, so nothing that the event loop does makes a step wait; text, stop strings
    and log-probabilities are made here. Start it with `async with AsyncLLM(...) as llm:` or
    `await AsyncLLM.start(...)`, which raise what LLM raises; use it from that event loop only.

    Every waiting call raises EngineDeadError as soon as the engine's process has ended.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        memory: MemoryConfig | None = None,
        dtype: str = "auto",
        tokenizer: str | Path | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_tokens_per_forward: int | None = None,
        seed: int = 0,
        threads: int | None = None,
        enable_prefix_caching: bool = True,
        progress: Report = silent,
        warm_up: bool = True,
    ) -> None:
        numbers: dict[str, int | bool | None] = {
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
            "max_tokens_per_forward": max_tokens_per_forward,
            "seed": seed,
            "threads": threads,
            "enable_prefix_caching": enable_prefix_caching,
            "warm_up": warm_up,
        }
        chosen = {} if memory is None else memory.chosen()
        self._start = Start(str(model), chosen, dtype, numbers, str(tokenizer or ""))
        self._tokenizer_folder = tokenizer
        self._progress = progress
        self._clock = RealClock()
        self._connection: Connection | None = None
        self._listener: asyncio.Task[None] | None = None
        self._end: TokenVMError = RequestError(
            "this AsyncLLM has not started: type `async with AsyncLLM(...) as llm:`"
        )
        self._requests = Requests()
        self._names: dict[str, str] = {}  # request id → name, of those in flight
        self._questions = Questions()
        self._count = 0

    @classmethod
    async def start(cls, model: str | Path, **arguments: Any) -> Self:
        """Make one and wait until its engine stands. The caller shuts it down."""
        return await cls(model, **arguments).__aenter__()

    async def __aenter__(self) -> Self:
        if self._connection is None:
            await self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    @property
    def plan(self) -> dict[str, Any]:
        """What its memory is used for, and how many sequences fit: `StartupPlan` as plain values."""
        return self._ready.plan

    @property
    def alive(self) -> bool:
        """Whether requests can be taken."""
        return self._listener is not None and not self._listener.done()

    def get_tokenizer(self) -> Tokenizer:
        """Return the tokenizer."""
        return self._tokenizer

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
        delta: bool = False,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Complete a prompt, yielding all that has come so far whenever there is more, or with `delta` only the new.

        A lower `priority` runs first; only requests with the same `cache_salt` share pages, and one in
        the prompt, as {"prompt": ..., "cache_salt": ...}, counts before it. Who reads slowly gets
        several tokens at once. The last output is `finished`. Ending the iteration early, or
        cancelling the task that iterates, ends the request. Text that may become a stop string is held back.

        Raises:
            RequestError: the request is not possible. StorageError: there is no room for its pages. EngineDeadError.
        """
        one = await self._submit(prompt, sampling_params, request_id, priority, cache_salt, False)
        try:
            ended = False
            while not ended:
                await one.wait()
                ended = one.finished  # what comes while the caller has this output is news again
                yield one.delta() if delta else one.so_far()
        finally:
            self._forget(one)

    async def complete(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> RequestOutput:
        """Return the last output of `generate`, at less cost: nobody is woken for each token. Raises the same."""
        one = await self._submit(prompt, sampling_params, request_id, priority, cache_salt, True)
        try:
            return await one.end()
        finally:
            self._forget(one)

    async def abort(self, request_id: str) -> None:
        """End a request, if there is one of that id; its last output has the finish reason "abort"."""
        if request_id in self._names:
            self._requests.abort(self._names[request_id])
            await self._send(Abort(self._names[request_id]))

    async def stats(self) -> dict[str, Any]:
        """Return what `LLM.stats` does. Raises EngineDeadError."""
        number = self._questions.begin()
        try:
            await self._send(Ask(number))
            return await self._questions.answer(number)
        finally:
            self._questions.forget(number)

    async def ended(self) -> TokenVMError:
        """Return what ended the engine, once it has."""
        if self._listener is not None:
            await asyncio.wait((self._listener,))
        return self._end

    async def check_health(self, timeout_s: float = HEALTH_S) -> None:
        """Return once the engine has answered between two steps.

        Raises EngineDeadError if its process has ended or does not answer in time.
        """
        await in_time(self.stats(), timeout_s)

    async def shutdown(self) -> None:
        """End the engine's process and wait until it is gone; idempotent. Requests left raise EngineDeadError."""
        if self._connection is None:
            return
        connection, self._connection = self._connection, None
        self._fail_all(EngineDeadError("this AsyncLLM was shut down: make another"))
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        await connection.close(politely=self._listener is not None)

    async def _begin(self) -> None:
        connection = self._connection = await Connection.open()
        try:
            self._ready: Ready = await connection.start_engine(self._start, self._progress)
            folder = Path(self._tokenizer_folder or self._ready.folder)
            self._tokenizer = await asyncio.to_thread(Tokenizer.from_folder, folder)
        except BaseException:
            if self._connection is connection:
                self._connection = None
                await asyncio.shield(connection.close(politely=False))
                raise
        if self._connection is not connection:  # it was shut down meanwhile
            raise self._end
        self._listener = asyncio.create_task(self._listen(connection))

    async def _submit(
        self, prompt: Prompt, how: SamplingParams | None, name: str | None, rank: int, salt: str, whole: bool
    ) -> InFlight:
        self._refuse_dead()
        self._count += 1
        wired = str(self._count)
        name = name or f"request-{wired}"
        if name in self._names:
            raise RequestError(f"a request {name!r} has not finished: give each an id of its own")
        self._names[name] = wired
        try:
            ids, said = await read_aside(prompt, self._tokenizer)
            now_s, params, salt = self._clock.now_s(), ready(how, self._tokenizer), salt_of(prompt, salt)
            request = Request(name, ids, params, now_s, rank, cache_salt=salt)
            collector = Collector(request, said, self._tokenizer, self._ready.ends, streams=not whole)
            one = InFlight(wired, collector)
            if not self._requests.add(one, now_s):
                await self._send(Submit.of(request, wired))
        except BaseException:
            self._requests.drop(wired)
            self._names.pop(name, None)
            self._tell(Abort(wired))
            raise
        return one

    async def _send(self, message: Submit | Abort | Ask) -> None:
        connection = self._refuse_dead()
        connection.send(message)
        await connection.drain()

    def _refuse_dead(self) -> Connection:
        """Raise what ended the engine, or kept it from standing, if it does not stand."""
        if not self.alive or self._connection is None:
            raise type(self._end)(*self._end.args)
        return self._connection

    def _forget(self, one: InFlight) -> None:
        """End what has not ended; its events are not for anybody any more."""
        if self._requests.remove(one):
            del self._names[one.request_id]
            if not one.finished:
                self._tell(Abort(one.name))

    def _tell(self, message: Abort | Stop) -> None:
        """Send what matters no more once the engine has gone."""
        if self._connection is not None:
            self._connection.send(message)

    async def _listen(self, connection: Connection) -> None:
        """Hear the engine until it ends; whatever ends this ends every request by name."""
        try:
            while True:
                self._hear(await connection.receive())
        except EngineDeadError as error:
            self._fail_all(error)
        except Exception as error:
            self._fail_all(EngineDeadError(f"its messages cannot be read ({error!r}): make another AsyncLLM"))
            raise

    def _hear(self, message: ToFront) -> None:
        match message:
            case Stepped():
                for answer in self._requests.hear(message, self._clock.now_s()):
                    self._tell(answer)
            case Accepted(name, seqs):
                self._requests.accept(name, seqs)
            case Refused(name, failure):
                self._requests.fail(name, error_from(failure))
            case Told(number, stats):
                self._questions.hear(number, stats)
            case _:
                raise ValueError(f"{type(message).__name__} is not said by a running engine")

    def _fail_all(self, error: EngineDeadError) -> None:
        self._end = error
        self._requests.fail_all(error)
        self._questions.fail_all(error)
