"""Whatever fails below the device, every request is answered with the tokens it would have had."""

import errno
import os
from pathlib import Path

import pytest
from fixtures_engine import (
    Lasting,
    Said,
    greedy,
    page_bytes,
    prompt,
    running,
    speak,
    tiny_model,
    used_slots,
)

from tokenvm.clock import FakeClock
from tokenvm.engine.engine import Engine
from tokenvm.errors import StorageError
from tokenvm.memory.backend import Kind
from tokenvm.memory.faults import SLOW_S
from tokenvm.memory.faulty import READ_FAULTS, WRITE_FAULTS, FaultyDevice
from tokenvm.memory.sim import SimDevice
from tokenvm.schedule.request import Request

PROMPTS = [prompt(120), prompt(70), prompt(40), prompt(25)]
TOKENS = 12


def roomy() -> list[Said]:
    with running(tiny_model(), Path("unused")) as engine:
        return speak(engine, PROMPTS, TOKENS)


def disk(engine: Engine) -> dict:
    return engine.stats()["tiers"]["disk"]


@pytest.mark.parametrize("fault", sorted({*READ_FAULTS, *WRITE_FAULTS}))
def test_each_kind_of_fault_is_counted_and_costs_no_token(fault: str, tmp_path: Path) -> None:
    reads, writes = ([fault] * (fault in known) for known in (READ_FAULTS, WRITE_FAULTS))
    device = FaultyDevice(0.03, seed=1, reads=reads, writes=writes)
    with running(tiny_model(), tmp_path, device_pages=6, backend=device, clock=FakeClock()) as engine:
        assert speak(engine, PROMPTS, TOKENS) == roomy()
        counted = disk(engine)["faults"]
    assert device.injected[fault] > 0
    seen = "checksum" if fault == "dropped" else fault
    assert counted[seen] > 0
    assert sum(counted.values()) == counted[seen], "no fault is taken for another"


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("host_pages", [0, 6])
def test_many_faults(rate: float, host_pages: int, tmp_path: Path) -> None:
    """Tiers go off and on meanwhile; sequences begin again, wait, and end with the right tokens."""
    device, clock = FaultyDevice(rate, seed=2), FakeClock()
    longest = {"device_pages": 10, "host_pages": host_pages}
    with running(tiny_model(), tmp_path, backend=device, clock=clock, **longest) as engine:
        assert speak(engine, PROMPTS, TOKENS, on_step=lambda *_: clock.advance(0.05)) == roomy()
        if rate > 0.5:
            assert disk(engine)["switched_off"] > 0
            assert engine.stats()["set_back_sequences"] > 0
        device.rate = 0.0
        assert used_slots(engine) == [0, 0, 0]


def test_the_tier_comes_back(tmp_path: Path) -> None:
    device, clock = FaultyDevice(1.0, seed=3), FakeClock()
    with running(tiny_model(), tmp_path, device_pages=10, backend=device, clock=clock) as engine:
        assert speak(engine, PROMPTS, TOKENS) == roomy()
        assert disk(engine)["condition"] == "off"
        assert disk(engine)["usable_slots"] == 0
        device.rate = 0.0
        clock.advance(100.0)
        assert speak(engine, PROMPTS, TOKENS) == roomy()
        assert disk(engine)["condition"] == "on"
        assert engine.stats()["streamed_pages"] > 0


@pytest.mark.parametrize("slots", [0, 4, 8])
def test_a_disk_that_fills_up_in_the_middle(
    slots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Space for `slots` pages is there, and then no more: who has no room waits until others have ended."""
    left, page, real = [slots], page_bytes(tiny_model()), os.posix_fallocate

    def fallocate(fd: int, offset: int, length: int) -> None:
        if length > left[0] * page:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= length // page
        real(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    monkeypatch.setattr("tokenvm.memory.disk.pages_of_slab", lambda *_: 4)
    with running(tiny_model(), tmp_path, device_pages=10, clock=FakeClock()) as engine:
        assert speak(engine, PROMPTS, TOKENS, every_steps=2) == roomy()
        assert disk(engine)["faults"]["no_space"] > 0
        assert disk(engine)["usable_slots"] == slots
        left[0] = 1000
        assert speak(engine, PROMPTS, TOKENS) == roomy()
        assert disk(engine)["usable_slots"] == 64
        assert used_slots(engine) == [0, 0, 0]


def test_a_request_that_nothing_holds_fails_alone(tmp_path: Path) -> None:
    """The others are answered before and after it."""
    device, clock = SimDevice(4), FakeClock()
    device.fail_when(lambda copy: copy.kind is Kind.WRITE)
    with running(tiny_model(), tmp_path, device_pages=5, backend=device, clock=clock) as engine:
        engine.add(Request("large", prompt(150), greedy(4)))
        engine.add(Request("small", prompt(20), greedy(4)))
        failures, ends = {}, []
        while engine.has_work:
            result = engine.step()
            failures |= result.failures
            ends += [event.request_id for event in result.events if hasattr(event, "reason")]
        assert isinstance(failures.pop("large"), StorageError)
        assert failures == {}
        assert sorted(ends) == ["large", "small"]
        assert used_slots(engine) == [0, 0, 0]


def test_a_slow_device_is_a_fault(tmp_path: Path) -> None:
    class Slow(FakeClock):
        """Every look at it takes long."""

        def now_s(self) -> float:
            self.advance(2 * SLOW_S)
            return super().now_s()

    with running(tiny_model(), tmp_path, device_pages=10, clock=Slow()) as engine:
        assert speak(engine, PROMPTS, TOKENS) == roomy()
        assert disk(engine)["faults"]["slow"] > 0
        assert disk(engine)["switched_off"] > 0


def test_faults_are_logged_once_a_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    device = FaultyDevice(0.02, seed=5, reads=["short_read", "checksum"], writes=[])
    with running(tiny_model(), tmp_path, device_pages=6, backend=device, clock=FakeClock()) as engine:
        speak(engine, PROMPTS, TOKENS)
        assert disk(engine)["faults"]["checksum"] > 1
    told = [record.getMessage() for record in caplog.records if "from now on" in record.getMessage()]
    assert len(told) == 2
    assert {line.split(": ")[1].split(".")[0] for line in told} == {"short read", "checksum"}


def test_a_slot_that_fails_is_retired(tmp_path: Path) -> None:
    device, bad = SimDevice(6), set()

    def first_one(copy: object) -> bool:
        if copy.kind is Kind.WRITE and not bad:
            bad.add(copy.place)
        return copy.kind is Kind.WRITE and copy.place in bad

    device.fail_when(first_one)
    with running(tiny_model(), tmp_path, device_pages=6, backend=device, clock=FakeClock()) as engine:
        assert speak(engine, PROMPTS, TOKENS) == roomy()
        assert disk(engine)["retired_slots"] == 1
        assert disk(engine)["usable_slots"] == 63
        assert disk(engine)["condition"] == "on"


def test_what_fails_for_a_moment_is_read_again(tmp_path: Path) -> None:
    device, count = SimDevice(7), [0]

    def now_and_then(copy: object) -> bool:
        count[0] += copy.kind is Kind.READ
        return copy.kind is Kind.READ and count[0] % 50 == 0

    device.fail_when(now_and_then)
    with running(tiny_model(), tmp_path, device_pages=6, backend=device, clock=FakeClock()) as engine:
        assert speak(engine, PROMPTS, TOKENS) == roomy()
        assert engine.account.lost_pages == 0
        assert disk(engine)["faults"]["io_error"] > 0


def test_pages_without_a_tier_are_never_lost_for_others(tmp_path: Path) -> None:
    """Lasting faults of reads: the pages they hit are computed again, others still hit."""
    device, count = SimDevice(8), [0]

    def now_and_then(copy: object) -> bool:
        count[0] += copy.kind is Kind.READ
        return copy.kind is Kind.READ and count[0] % 200 == 0

    device.fail_when(Lasting(now_and_then))
    with running(tiny_model(), tmp_path, device_pages=6, backend=device, clock=FakeClock()) as engine:
        assert speak(engine, PROMPTS, TOKENS) == roomy()
        assert 0 < engine.account.lost_pages < engine.stats()["tiers"]["disk"]["hits"]
