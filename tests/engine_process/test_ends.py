"""However the engine process or the front process ends, everybody hears of it, and nothing is left."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fixtures_async import ARGUMENTS, BOUND_S, Run, greedy, last, prompt

import tokenvm
from tokenvm import (
    AsyncLLM,
    EngineDeadError,
    LimitTooSmall,
    MemoryConfig,
    ModelError,
    RequestError,
)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TOKENVM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pid_of(llm: AsyncLLM) -> int:
    assert llm._connection is not None
    return llm._connection.pid


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


async def rest(outputs: AsyncIterator[Any]) -> None:
    async for _ in outputs:
        pass


async def crowd(llm: AsyncLLM, count: int) -> list[asyncio.Task[Any]]:
    """Start requests that take long, and wait until one is under way."""
    first = llm.generate(prompt(20), greedy(4000))
    await anext(first)
    tasks = [asyncio.create_task(last(llm, prompt(5 + at), greedy(4000))) for at in range(count - 1)]
    tasks.append(asyncio.create_task(rest(first)))
    await asyncio.sleep(0)
    return tasks


async def errors_of(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), BOUND_S)


def test_a_killed_engine_is_told_to_all_who_wait(run: Run, model_folder: Path, cache: Path) -> None:
    async def killed() -> None:
        llm = await AsyncLLM.start(model_folder, **ARGUMENTS)
        pid, tasks = pid_of(llm), await crowd(llm, 40)
        tasks.append(asyncio.create_task(llm.check_health()))
        os.kill(pid, signal.SIGKILL)
        for error in await errors_of(tasks):
            assert isinstance(error, EngineDeadError)
            assert "SIGKILL" in str(error)
        assert not llm.alive
        for late in (last(llm, prompt(3)), llm.check_health(), llm.stats(), crowd(llm, 1)):
            with pytest.raises(EngineDeadError, match="SIGKILL"):
                await late
        await llm.shutdown()
        await llm.shutdown()
        assert is_gone(pid)

    run(killed())
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_an_error_in_the_engine_is_told_with_its_trace(run: Run, model_folder: Path) -> None:
    async def failed() -> None:
        async with await AsyncLLM.start(model_folder, **ARGUMENTS) as llm:
            tasks = await crowd(llm, 3)
            assert llm._connection is not None
            llm._connection._writer.write(b"\x01\x00\x00\x00\xc1")
            for error in await errors_of(tasks):
                assert isinstance(error, EngineDeadError)
                assert "make another AsyncLLM" in str(error)
                assert "for_engine" in str(error)
                assert "DecodeError" in str(error)

    run(failed())


def test_shutdown_ends_requests_and_leaves_nothing(run: Run, model_folder: Path, cache: Path) -> None:
    async def shut() -> int:
        llm = AsyncLLM(model_folder, **ARGUMENTS)
        with pytest.raises(RequestError, match="has not started"):
            await last(llm, prompt(3))
        async with llm:
            pid, tasks = pid_of(llm), await crowd(llm, 5)
        for error in await errors_of(tasks):
            assert isinstance(error, EngineDeadError)
            assert "shut down" in str(error)
        return pid

    handles = set(os.listdir("/proc/self/fd"))
    assert is_gone(run(shut()))
    assert set(os.listdir("/proc/self/fd")) == handles
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_what_is_wrong_at_the_start_is_raised_as_it_is(run: Run, model_folder: Path) -> None:
    with pytest.raises(LimitTooSmall, match="kv_limit is 5 B") as caught:
        run(AsyncLLM.start(model_folder, memory=MemoryConfig(kv_limit=5)))
    assert caught.value.minimum_bytes > 5
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        run(AsyncLLM.start(model_folder, tokenizer="/nowhere"))


def test_progress_of_loading_reaches_the_caller_and_a_start_can_be_cancelled(
    run: Run, model_folder: Path
) -> None:
    async def cancelled() -> list[str]:
        messages: list[str] = []
        begun = asyncio.Event()

        def hear(progress: Any) -> None:
            messages.append(progress.message)
            begun.set()

        llm = AsyncLLM(model_folder, **ARGUMENTS, progress=hear)
        start = asyncio.create_task(llm.__aenter__())
        await begun.wait()
        pid = pid_of(llm)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert is_gone(pid)
        return messages

    assert any("weights" in message for message in run(cancelled()))


FRONT = """
import asyncio, sys
from tokenvm import AsyncLLM, SamplingParams

async def main():
    llm = await AsyncLLM.start(sys.argv[1], max_model_len=4000, threads=1)
    print(llm._connection.pid, flush=True)
    async for _ in llm.generate({"prompt_token_ids": [5, 6]}, SamplingParams(max_tokens=3990, ignore_eos=True)):
        pass
    await asyncio.sleep(60)

asyncio.run(main())
"""


def heed_interrupts() -> None:
    """Let a child end by Ctrl-C, also where the tests run in the background, with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=lambda sent: sent.name)
def test_an_engine_ends_with_its_front_process(sent: signal.Signals, model_folder: Path, cache: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(tokenvm.__file__).parents[1])}
    command = [sys.executable, "-c", FRONT, str(model_folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, preexec_fn=heed_interrupts, **pipes) as front:
        assert front.stdout is not None
        line = front.stdout.readline()
        pid = int(line)
        os.kill(front.pid, sent)
        until = time.monotonic() + BOUND_S
        while not is_gone(pid):
            assert time.monotonic() < until, "the engine outlives its front process"
            time.sleep(0.01)
        front.communicate(timeout=BOUND_S)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_a_start_can_be_shut_down(run: Run, model_folder: Path) -> None:
    async def shut() -> int:
        begun = asyncio.Event()
        llm = AsyncLLM(model_folder, **ARGUMENTS, progress=lambda _: begun.set())
        start = asyncio.create_task(llm.__aenter__())
        await begun.wait()
        pid = pid_of(llm)
        await llm.shutdown()
        with pytest.raises(EngineDeadError, match="shut down"):
            await start
        return pid

    assert is_gone(run(shut()))
