"""The keeper makes engines again, ever more slowly while that fails; the turnstile bounds."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tokenvm.errors import EngineDeadError, ModelError, TokenVMError
from tokenvm.serve import keeper as room
from tokenvm.serve.keeper import Keeper
from tokenvm.serve.refusal import Refusal
from tokenvm.serve.turnstile import Turnstile


class Engine:
    """Stands in for an AsyncLLM; `die` ends it."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.closed = False

    @property
    def alive(self) -> bool:
        return not self.gone.is_set()

    async def ended(self) -> TokenVMError:
        await self.gone.wait()
        return EngineDeadError("dead")

    async def shutdown(self) -> None:
        self.closed = True

    async def stats(self) -> dict[str, Any]:
        return {"steps": 1}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the keeper slept; it does not sleep."""
    slept: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        if seconds:
            slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr(room.asyncio, "sleep", noted)
    return slept


NO_MODEL = ModelError("no such model")
Test = Callable[[Keeper, list[Engine]], Coroutine[Any, Any, None]]


def play(test: Test, failures: int = 0, error: Exception = NO_MODEL) -> list[Engine]:
    """Run a test on a keeper whose restarts fail so often at first."""
    made: list[Engine] = []
    left = failures

    async def make() -> Any:
        nonlocal left
        if made and left:
            left -= 1
            raise error
        made.append(Engine())
        return made[-1]

    async def run() -> None:
        async with Keeper(make) as keeper:
            await test(keeper, made)

    asyncio.run(asyncio.wait_for(run(), 30))
    return made


def test_a_dead_engine_is_replaced_and_who_waits_gets_the_next(pauses: list[float]) -> None:
    async def test(keeper: Keeper, made: list[Engine]) -> None:
        assert keeper.ready
        made[0].gone.set()
        assert not keeper.ready
        assert await keeper.standing(10) is made[1]
        assert keeper.ready
        assert await keeper.stats() == {"steps": 1, "engine_restarts": 1}

    made = play(test)
    assert [engine.closed for engine in made] == [True, True]


def test_who_waits_too_long_is_told(pauses: list[float]) -> None:
    async def test(keeper: Keeper, made: list[Engine]) -> None:
        made[0].gone.set()
        with pytest.raises(EngineDeadError, match="no engine stands"):
            await keeper.standing(0)

    play(test)


def test_pauses_double_while_restarts_fail_and_engines_die_young(pauses: list[float]) -> None:
    async def test(keeper: Keeper, made: list[Engine]) -> None:
        for _ in range(3):
            made[-1].gone.set()
            await keeper.standing(10)

    made = play(test, failures=2)
    assert len(made) == 4
    assert pauses == [0.2, 0.4, 0.8, 0.4, 0.8]


def test_what_the_system_refuses_is_tried_again_too(pauses: list[float]) -> None:
    async def test(keeper: Keeper, made: list[Engine]) -> None:
        made[0].gone.set()
        assert await keeper.standing(10) is made[1]

    play(test, failures=2, error=OSError("cannot allocate memory"))
    assert pauses == [0.2, 0.4, 0.8]


def test_pauses_have_a_bound(pauses: list[float]) -> None:
    async def test(keeper: Keeper, made: list[Engine]) -> None:
        made[0].gone.set()
        await keeper.standing(10)

    play(test, failures=12)
    assert max(pauses) == room.LONGEST_PAUSE_S


def test_the_first_start_fails_aloud() -> None:
    async def make() -> Any:
        raise ModelError("no such model")

    async def run() -> None:
        async with Keeper(make):
            raise AssertionError("nothing was kept")

    with pytest.raises(ModelError, match="no such"):
        asyncio.run(run())


def test_the_turnstile_counts_in_and_out() -> None:
    gate = Turnstile(4)
    with gate.enter(3):
        with pytest.raises(Refusal, match="ask again") as refused:
            gate.enter(2).__enter__()
        assert (refused.value.status, refused.value.kind) == (429, "rate_limit_error")
        with gate.enter(1):
            assert gate.inside == 4
    assert gate.inside == 0
    with pytest.raises(Refusal, match="ask for fewer") as refused:
        gate.enter(5).__enter__()
    assert refused.value.status == 400
    with pytest.raises(KeyError), gate.enter(2):
        raise KeyError
    assert gate.inside == 0
