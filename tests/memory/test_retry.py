"""Copies that fail in passing are tried again after a while; those that fail for good are not."""

import numpy as np
import pytest

from tokenvm.clock import FakeClock
from tokenvm.memory.backend import Check, Copies, Kind, Status
from tokenvm.memory.retry import BACK_OFF_S, RetryingCopies
from tokenvm.memory.sim import SimDevice
from tokenvm.vocab import Answer

PART = 4096


class Desk:
    """Four parts in memory that are copied to memory on a simulated device."""

    def __init__(self):
        self.device, self.clock = SimDevice(1), FakeClock()
        self.heard: list[tuple[int, int]] = []
        self.copies = RetryingCopies(self.device.copies(), self.clock, self.hear)
        self.source, self.target = self.device.allocate(4 * PART), self.device.allocate(4 * PART)
        self.device.fill(self.source.address, 7, 4 * PART)

    def hear(self, kinds, statuses):
        self.heard += zip(kinds.tolist(), statuses.tolist(), strict=True)

    def submit(self):
        offsets = np.arange(4, dtype=np.uint64) * np.uint64(PART)
        return self.copies.submit(
            Copies(
                kind=np.full(4, Kind.COPY_IN, np.uint8),
                check=np.full(4, Check.COMPUTE, np.uint8),
                fd=np.full(4, -1, np.int32),
                place=offsets + np.uint64(self.source.address),
                address=offsets + np.uint64(self.target.address),
                nbytes=np.full(4, PART, np.uint64),
                checksum=np.zeros(4, np.uint32),
            ),
            urgent=False,
        )


@pytest.fixture
def desk():
    return Desk()


def fails(desk, times):
    """Of the second part: so many attempts."""
    left = [times]

    def predicate(copy):
        hit = copy.place == desk.source.address + PART and left[0] > 0
        left[0] -= hit
        return hit

    return predicate


@pytest.mark.parametrize("times", range(len(BACK_OFF_S) + 3))
def test_only_what_failed_is_tried_again(desk, times):
    desk.device.fail_when(fails(desk, times))
    batch = desk.submit()
    landed = times <= len(BACK_OFF_S)
    assert batch.wait() is (Answer.HIT if landed else Answer.MISS)
    attempts = min(times, 1 + len(BACK_OFF_S))
    assert desk.heard == [(Kind.COPY_IN, Status.FAILED)] * attempts
    assert desk.device.counters.started == 4 + min(times, len(BACK_OFF_S))
    assert desk.clock.now_s() == pytest.approx(sum(BACK_OFF_S[:times]))
    status = batch.result().status.tolist()
    assert status == [Status.LANDED, Status.LANDED if landed else Status.FAILED, *[Status.LANDED] * 2]
    assert len(set(batch.result().checksums.tolist())) == (1 if landed else 2)
    assert batch.poll() is batch.wait()


def test_a_poll_waits_for_nothing(desk):
    desk.device.fail_when(fails(desk, 1))
    batch = desk.submit()
    while not desk.heard:
        assert batch.poll() is Answer.IN_FLIGHT
    assert batch.poll() is Answer.IN_FLIGHT
    assert desk.device.counters.started == 4, "not before its time"
    desk.clock.advance(BACK_OFF_S[0])
    while batch.poll() is Answer.IN_FLIGHT:
        pass
    assert batch.poll() is Answer.HIT
    assert desk.clock.now_s() == BACK_OFF_S[0]


def test_an_interrupt_loses_nothing(desk, monkeypatch):
    desk.device.fail_when(fails(desk, 1))
    batch = desk.submit()
    wait_until, stopped = desk.clock.wait_until, []

    def interrupted(moment_s):
        if not stopped:
            stopped.append(moment_s)
            raise KeyboardInterrupt
        wait_until(moment_s)

    monkeypatch.setattr(desk.clock, "wait_until", interrupted)
    with pytest.raises(KeyboardInterrupt):
        batch.wait()
    assert batch.wait() is Answer.HIT
    assert desk.device.counters.started == 5
