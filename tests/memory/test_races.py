"""Races forced on a simulated device: what must be refused, and what must survive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rig import DEVICE, DISK, HOST, LAYOUT, PAGES, RING_SLOTS, Rig, move

from tokenvm.memory.sim import SimDevice, SimFault
from tokenvm.vocab import Answer, Move


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(SimDevice(5), tmp_path)
    yield rig
    rig.close()


def device_of(rig: Rig) -> SimDevice:
    assert isinstance(rig.backend, SimDevice)
    return rig.backend


def test_a_failed_demotion_leaves_the_source_and_its_neighbours(sim: Rig) -> None:
    for slot in range(3):
        sim.write(slot, slot)
    bad = sim.disk.places(1, 2)
    device_of(sim).fail_when(lambda copy: copy.fd == -1 or copy.place == int(bad.place))
    transfer = sim.engine.submit([move(i, DEVICE, i, DISK, i) for i in range(3)])
    assert transfer.failed == (move(1, DEVICE, 1, DISK, 1),)
    assert sim.holds(1, 1), "the source stays valid until the destination commits"
    assert not sim.disk.checksums[1].any()
    assert sim.disk.checksums[[0, 2]].all()
    counters = device_of(sim).counters
    assert (counters.started, counters.landed, counters.failed) == (9, 8, 1)


def test_reading_a_page_before_it_landed_is_a_fault(sim: Rig) -> None:
    sim.store_pages(DISK, 1)
    transfer = sim.engine.submit([move(0, DISK, 0, DEVICE, 3)])
    assert (sim.part(3, 0) == 0xFF).all(), "the destination is poisoned from the start"
    with pytest.raises(SimFault):
        sim.backend.reading(sim.arena.addresses([3], 1))
    sim.backend.reading(sim.arena.addresses([2], 1))
    assert transfer.wait() is Answer.HIT
    sim.backend.reading(sim.arena.addresses([3], 1))


def test_reusing_a_slot_before_its_page_left_is_a_fault(sim: Rig) -> None:
    transfer = sim.engine.submit([move(0, DEVICE, 0, DISK, 0)])
    with pytest.raises(SimFault):
        sim.arena.fill(0)
    sim.backend.reading(sim.arena.addresses([0], 1))
    transfer.wait()
    sim.arena.fill(0)


@pytest.mark.parametrize(
    "second",
    [
        move(1, DEVICE, 1, DISK, 0),  # writes what the first one writes
        move(0, DISK, 0, DEVICE, 2),  # reads what the first one writes
        move(1, HOST, 0, DEVICE, 0),  # writes what the first one reads
    ],
)
def test_transfers_that_meet_are_a_fault(sim: Rig, second: Move) -> None:
    sim.host.ensure(1)
    sim.engine.submit([move(0, DEVICE, 0, DISK, 0)])
    with pytest.raises(SimFault):
        sim.engine.submit([second])


def test_two_readers_of_one_page_do_not_meet(sim: Rig) -> None:
    sim.write(0, 0)
    transfers = [sim.engine.submit([move(0, DEVICE, 0, tier, 0)]) for tier in (DISK, HOST)]
    assert [t.wait() for t in transfers] == [Answer.HIT, Answer.HIT]


def test_nothing_lands_on_a_pinned_page(sim: Rig) -> None:
    sim.store_pages(DISK, 1)
    with device_of(sim).pin(sim.arena.address(1), LAYOUT.page_bytes):
        with pytest.raises(SimFault):
            sim.engine.submit([move(0, DISK, 0, DEVICE, 1)])
        assert sim.run(move(1, DEVICE, 1, DISK, 1)) is Answer.HIT
    assert sim.run(move(0, DISK, 0, DEVICE, 1)) is Answer.HIT
    with device_of(sim).pin(sim.arena.address(1), LAYOUT.page_bytes, exclusive=True), pytest.raises(SimFault):
        sim.engine.submit([move(1, DEVICE, 1, DISK, 2)])


def test_a_kernel_may_not_read_ring_slots_it_gave_back(sim: Rig) -> None:
    sim.store_pages(DISK, 2)
    first = sim.engine.stream(sim.engine.program([DISK] * 2, [0, 1], [0]))
    slots = sim.ring.addresses(first, first + 2)
    with pytest.raises(SimFault):
        sim.backend.reading(slots)
    sim.ring.wait(first + 2)
    sim.backend.reading(slots)
    sim.ring.release(first + 1)
    sim.backend.reading(slots[1:])
    with pytest.raises(SimFault):
        sim.backend.reading(slots[:1])


def test_cancel_waits_for_reads_in_flight(sim: Rig) -> None:
    sim.store_pages(DISK)
    sim.engine.stream(sim.engine.program([DISK] * 6, range(6), range(3)))
    assert device_of(sim).in_flight == RING_SLOTS
    sim.ring.cancel()
    assert device_of(sim).in_flight == 0
    assert device_of(sim).counters.dropped == 18 - RING_SLOTS


def test_a_failed_copy_is_a_failed_ticket(sim: Rig) -> None:
    sim.store_pages(DISK, 2)
    first = sim.engine.stream(sim.engine.program([DISK] * 2, [0, 1], [0]))
    device_of(sim).fail_next(1)
    assert sim.ring.wait(first + 2) is Answer.MISS
    assert len(sim.ring.failed(first, first + 2)) == 1


def test_the_same_seed_gives_the_same_order(tmp_path: Path) -> None:
    def failures(seed: int) -> tuple[Move, ...]:
        rig = Rig(SimDevice(seed), tmp_path / str(seed))
        device_of(rig).fail_next(2)
        failed = rig.engine.submit([move(i, DEVICE, i, DISK, i) for i in range(PAGES)]).failed
        rig.close()
        return failed

    assert failures(1) == failures(1)
    assert len({failures(seed) for seed in range(8)}) > 1
