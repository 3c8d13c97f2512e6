"""The emulated link: when what has crossed it, on a clock that only moves when it is waited for."""

from __future__ import annotations

import numpy as np
import pytest

from tokenvm.bench.link import LinkedDevice, Wire
from tokenvm.clock import FakeClock
from tokenvm.memory.backend import Check, Copies, Kind, Program
from tokenvm.memory.sim import SimDevice
from tokenvm.vocab import Answer

PART = 4096


class Patience(FakeClock):
    """Time passes by waiting."""

    def wait_until(self, moment_s: float) -> None:
        self.advance(max(0.0, moment_s - self.now_s()))


def sizes(*nbytes: int) -> np.ndarray:
    return np.array(nbytes, np.uint64)


def test_copies_cross_one_after_another() -> None:
    wire = Wire(100.0)
    assert wire.cross(sizes(100, 50), 10.0).tolist() == [11.0, 11.5]
    assert wire.cross(sizes(100), 10.2).tolist() == [12.5], "behind those that are crossing"
    assert wire.cross(sizes(100), 20.0).tolist() == [21.0], "an idle wire owes nothing and saves nothing up"
    assert wire.cross(sizes(), 20.0).tolist() == []


def test_busy_time_is_told_once_and_only_up_to_now() -> None:
    wire = Wire(100.0)
    wire.cross(sizes(100), 0.0)
    wire.cross(sizes(200), 5.0)
    assert wire.drain_busy(6.0).tolist() == [[0.0, 1.0], [5.0, 6.0]]
    assert wire.drain_busy(6.0).tolist() == []
    assert wire.drain_busy(9.0).tolist() == [[6.0, 7.0]]


def test_what_is_dropped_frees_the_wire() -> None:
    wire = Wire(100.0)
    wire.cross(sizes(1000), 0.0)
    wire.drop(1.0)
    assert wire.cross(sizes(100), 1.0).tolist() == [2.0]
    assert wire.drain_busy(9.0).tolist() == [[0.0, 1.0], [1.0, 2.0]]


def memory_program(address: int, count: int) -> Program:
    return Program(
        kind=np.full(count, Kind.COPY_IN, np.uint8),
        check=np.full(count, Check.NONE, np.uint8),
        fd=np.full(count, -1, np.int32),
        place=np.full(count, address, np.uint64),
        nbytes=np.full(count, PART, np.uint64),
        checksum=np.zeros(count, np.uint32),
    )


@pytest.fixture
def clock() -> Patience:
    return Patience()


@pytest.fixture
def device(clock: Patience) -> LinkedDevice:
    return LinkedDevice(SimDevice(seed=0), PART, clock)  # a part a second


def test_a_ring_delivers_at_the_wire_s_pace(device: LinkedDevice, clock: Patience) -> None:
    region = device.allocate(5 * PART)
    ring = device.ring(region.address, 4, PART)
    ring.submit(memory_program(region.address + 4 * PART, 10))
    assert ring.wait(3) is Answer.HIT
    assert clock.now_s() == 3.0
    clock.advance(7.0)
    ring.release(3)  # only now three more may start: the wire was idle meanwhile
    assert ring.wait(4) is Answer.HIT
    assert clock.now_s() == 10.0
    assert ring.wait(5) is Answer.HIT
    assert clock.now_s() == 11.0
    assert device.drain_intervals(outward=False)[:, 1].max() == 11.0
    device.close()


def test_the_ring_starts_again_after_a_cancel(device: LinkedDevice, clock: Patience) -> None:
    region = device.allocate(5 * PART)
    ring = device.ring(region.address, 4, PART)
    ring.submit(memory_program(region.address + 4 * PART, 10))
    ring.wait(1)
    ring.cancel()
    first = ring.submit(memory_program(region.address + 4 * PART, 2))
    assert ring.wait(first + 2) is Answer.HIT
    assert clock.now_s() == 3.0
    device.close()


def test_a_batch_ends_when_the_wire_has_carried_it(device: LinkedDevice, clock: Patience) -> None:
    region = device.allocate(4 * PART)
    columns = memory_program(region.address, 2)
    copies = Copies(
        columns.kind,
        columns.check,
        columns.fd,
        columns.place,
        region.address + np.array([1, 2], np.uint64) * np.uint64(PART),
        columns.nbytes,
        columns.checksum,
    )
    batch = device.copies().submit(copies, urgent=True)
    clock.advance(1.5)
    assert batch.poll() is Answer.IN_FLIGHT
    assert batch.wait() is Answer.HIT
    assert clock.now_s() == 2.0
    back = np.array([region.address, region.address + 3 * PART], np.uint64)
    out = Copies(
        copies.kind | 1, copies.check, copies.fd, back, copies.address, copies.nbytes, copies.checksum
    )
    device.copies().submit(out, urgent=True).result()
    assert clock.now_s() == 4.0, "the other direction is another wire, and it was idle"
    device.close()
