"""Whole pages between tiers and streams through the ring, on threads and on simulated races."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tokenvm.errors import StorageError
from tokenvm.memory.backend import DeviceBackend
from tokenvm.memory.cpu import CpuDevice, crc32c
from tokenvm.memory.device import DeviceArena
from tokenvm.memory.disk import DiskStore
from tokenvm.memory.host import HostPool
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.sim import SimDevice, SimFault
from tokenvm.memory.tier import TierStore
from tokenvm.memory.transfer import TransferEngine
from tokenvm.vocab import Answer, Move, SlotId, Tier, UnitId

LAYOUT = PageLayout(layers=3, part_bytes=5000)
DEVICE, HOST, DISK = Tier.DEVICE, Tier.HOST, Tier.DISK
PAGES, RING_SLOTS = 6, 5


def move(unit: int, source: Tier, source_slot: int, target: Tier, target_slot: int) -> Move:
    return Move(UnitId(unit), source, SlotId(source_slot), target, SlotId(target_slot))


class Rig:
    """Three small tiers and a ring on one backend."""

    def __init__(self, backend: DeviceBackend, path: Path) -> None:
        self.backend = backend
        self.arena = DeviceArena(backend, PAGES, LAYOUT)
        self.host = HostPool(backend, PAGES, LAYOUT)
        self.disk = DiskStore(path, PAGES * LAYOUT.page_bytes, LAYOUT, slab_pages=4)
        self.stores: dict[Tier, TierStore] = {DEVICE: self.arena, HOST: self.host, DISK: self.disk}
        self.region = backend.allocate(RING_SLOTS * LAYOUT.part_stride)
        self.ring = backend.ring(self.region.address, RING_SLOTS, LAYOUT.part_stride)
        self.engine = TransferEngine(backend, self.stores, self.ring)

    def part(self, slot: int, layer: int) -> NDArray[np.uint8]:
        return self.bytes_at(self.arena.address(slot, layer))

    def bytes_at(self, address: int) -> NDArray[np.uint8]:
        return np.ctypeslib.as_array((ctypes.c_uint8 * LAYOUT.part_stride).from_address(address))

    def write(self, slot: int, content: int) -> None:
        """Put a page into the arena whose bytes are known by its number."""
        for layer in range(LAYOUT.layers):
            self.part(slot, layer)[:] = content_of(content, layer)

    def holds(self, slot: int, content: int) -> bool:
        return all((self.part(slot, n) == content_of(content, n)).all() for n in range(LAYOUT.layers))

    def run(self, *moves: Move) -> Answer:
        return self.engine.submit(moves).wait()

    def store_pages(self, tier: Tier, count: int = PAGES) -> None:
        """Write pages 0..count - 1 to the same slots of a lower tier, and blank the arena."""
        for slot in range(count):
            self.write(slot, slot)
        assert self.run(*(move(i, DEVICE, i, tier, i) for i in range(count))) is Answer.HIT
        for slot in range(count):
            self.arena.fill(slot, 0)

    def damage(self, slot: int, layer: int) -> None:
        """Flip one bit of a part on disk, behind everybody's back."""
        place = self.disk.places(slot, layer)
        fd = os.open(f"/proc/self/fd/{int(place.fd)}", os.O_RDWR)
        at = int(place.place) + 4321
        os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 0x10]), at)
        os.close(fd)

    def close(self) -> None:
        self.backend.close()
        for store in self.stores.values():
            store.close()


def content_of(page: int, layer: int) -> NDArray[np.uint8]:
    return np.random.default_rng([page, layer]).integers(0, 256, LAYOUT.part_stride, dtype=np.uint8)


BACKENDS: list[Callable[[], DeviceBackend]] = [
    CpuDevice,
    lambda: CpuDevice(threads=1, read_bytes=1),
    *(lambda seed=seed: SimDevice(seed) for seed in range(4)),
]


@pytest.fixture(params=BACKENDS, ids=["cpu", "cpu-one", "sim-0", "sim-1", "sim-2", "sim-3"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(request.param(), tmp_path)
    yield rig
    rig.close()


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(SimDevice(5), tmp_path)
    yield rig
    rig.close()


def device_of(rig: Rig) -> SimDevice:
    assert isinstance(rig.backend, SimDevice)
    return rig.backend


# -- whole pages


@pytest.mark.parametrize("tier", [HOST, DISK])
def test_a_page_comes_back_from_anywhere_to_anywhere(rig: Rig, tier: Tier) -> None:
    rig.store_pages(tier)
    order = [3, 0, 5, 1, 4, 2]
    transfer = rig.engine.submit([move(i, tier, i, DEVICE, order[i]) for i in range(PAGES)], urgent=True)
    while transfer.poll() is Answer.IN_FLIGHT:
        pass
    assert transfer.wait() is Answer.HIT
    assert transfer.failed == ()
    assert all(rig.holds(order[i], i) for i in range(PAGES))


def test_host_and_disk_trade_pages(rig: Rig) -> None:
    rig.store_pages(HOST, 3)
    assert rig.run(*(move(i, HOST, i, DISK, 5 - i) for i in range(3))) is Answer.HIT
    assert rig.run(*(move(i, DISK, 5 - i, HOST, 3 + i) for i in range(3))) is Answer.HIT
    assert rig.run(*(move(i, HOST, 3 + i, DEVICE, i) for i in range(3))) is Answer.HIT
    assert all(rig.holds(i, i) for i in range(3))
    page = LAYOUT.page_bytes
    moved = {"h2d": 3 * page, "d2h": 3 * page, "nvme_read": 3 * page, "nvme_write": 3 * page}
    assert rig.engine.moved_bytes == moved


def test_one_transfer_goes_all_ways_at_once(rig: Rig) -> None:
    rig.store_pages(DISK, 2)
    rig.store_pages(HOST, 2)
    rig.write(4, 4)
    moves = [
        move(0, DISK, 0, DEVICE, 0),
        move(4, DEVICE, 4, DISK, 4),
        move(1, HOST, 1, DEVICE, 1),
        move(0, HOST, 0, DISK, 5),
    ]
    assert rig.run(*moves) is Answer.HIT
    assert rig.holds(0, 0)
    assert rig.holds(1, 1)
    assert rig.run(move(4, DISK, 4, DEVICE, 2), move(0, DISK, 5, DEVICE, 3)) is Answer.HIT
    assert rig.holds(2, 4)
    assert rig.holds(3, 0)


def test_checksums_are_recorded_where_a_page_lands(rig: Rig) -> None:
    rig.write(2, 7)
    assert rig.run(move(7, DEVICE, 2, DISK, 3), move(7, DEVICE, 2, HOST, 1)) is Answer.HIT
    expected = [crc32c(rig.arena.address(2, layer), LAYOUT.part_stride) for layer in range(LAYOUT.layers)]
    assert rig.disk.checksums[3].tolist() == expected
    assert rig.host.checksums[1].tolist() == expected
    assert not rig.disk.checksums[[0, 1, 2, 4, 5]].any()


def test_no_moves_are_done(rig: Rig) -> None:
    assert rig.engine.submit([]).poll() is Answer.HIT


def test_a_damaged_page_fails_alone(rig: Rig) -> None:
    rig.store_pages(DISK)
    rig.damage(slot=2, layer=1)
    moves = [move(i, DISK, i, DEVICE, i) for i in reversed(range(PAGES))]
    transfer = rig.engine.submit(moves, urgent=True)
    assert transfer.wait() is Answer.MISS
    assert transfer.failed == (move(2, DISK, 2, DEVICE, 2),)
    assert (rig.part(2, 1) == 0xFF).all()
    assert [rig.holds(i, i) for i in range(PAGES)] == [True, True, False, True, True, True]


def test_a_page_damaged_in_host_memory_never_reaches_the_disk_as_good(rig: Rig) -> None:
    rig.store_pages(HOST, 2)
    rig.bytes_at(int(rig.host.places(0, 2).place))[9] ^= 1
    transfer = rig.engine.submit([move(i, HOST, i, DISK, i) for i in range(2)])
    assert transfer.failed == (move(0, HOST, 0, DISK, 0),)
    assert not rig.disk.checksums[0].any()
    assert rig.run(move(0, DISK, 0, DEVICE, 0)) is Answer.MISS


def test_a_slot_never_written_is_a_miss(rig: Rig) -> None:
    rig.disk.ensure(1)
    assert rig.run(move(0, DISK, 0, DEVICE, 0)) is Answer.MISS


def test_a_file_cut_short_is_a_miss(rig: Rig) -> None:
    rig.store_pages(DISK)
    os.ftruncate(
        int(rig.disk.places(0, 0).fd), 5 * LAYOUT.part_stride
    )  # parts of layer 1, slots 1 to 3, are gone
    transfer = rig.engine.submit([move(i, DISK, i, DEVICE, i) for i in range(PAGES)])
    assert [int(m.unit) for m in transfer.failed] == [0, 1, 2, 3]
    assert all(rig.holds(i, i) for i in (4, 5))


def test_where_there_is_no_room_nothing_starts(rig: Rig) -> None:
    with pytest.raises(StorageError):
        rig.engine.submit([move(0, DEVICE, 0, HOST, 0), move(1, DEVICE, 1, DISK, PAGES)])
    assert rig.engine.moved_bytes == {"h2d": 0, "d2h": 0, "nvme_read": 0, "nvme_write": 0}


# -- streams


def consume(rig: Rig, first: int, count: int, step: int) -> Iterator[NDArray[np.uint8]]:
    """Yield every part of a streamed program, releasing `step` tickets at a time."""
    for begin in range(first, first + count, step):
        end = min(begin + step, first + count)
        assert rig.ring.wait(end) is Answer.HIT
        addresses = rig.ring.addresses(begin, end)
        rig.backend.reading(addresses)
        for address in addresses.tolist():
            yield rig.bytes_at(address)
        rig.ring.release(end)


@pytest.mark.parametrize("step", [1, 2, RING_SLOTS])
def test_a_program_streams_layer_by_layer_from_both_tiers(rig: Rig, step: int) -> None:
    rig.store_pages(DISK)
    rig.store_pages(HOST, 3)
    pages = [(DISK, 4), (DISK, 5), (HOST, 0), (DISK, 3), (HOST, 2), (DISK, 0), (DISK, 1)]
    tiers, slots = np.array(pages).T
    layers = [2, 0]
    program = rig.engine.program(tiers, slots, layers)
    assert len(program) == 14
    expected = [content_of(slot, layer) for layer in layers for _, slot in pages]
    for _ in range(2):  # a program may be streamed again
        parts = consume(rig, rig.engine.stream(program), len(program), step)
        assert all((part == content).all() for part, content in zip(parts, expected, strict=True))


def test_a_damaged_part_is_a_failed_ticket(rig: Rig) -> None:
    rig.store_pages(DISK)
    rig.damage(slot=1, layer=0)
    first = rig.engine.stream(rig.engine.program([DISK] * 4, [0, 1, 2, 3], [0]))
    assert rig.ring.wait(first + 4) is Answer.MISS
    assert rig.ring.failed(first, first + 4).tolist() == [first + 1]
    assert (rig.bytes_at(int(rig.ring.addresses(first + 1, first + 2)[0])) == 0xFF).all()
    rig.ring.cancel()
    first = rig.engine.stream(rig.engine.program([DISK] * 2, [2, 3], [0]))
    assert rig.ring.wait(first + 2) is Answer.HIT


def test_an_empty_program_streams_nothing(rig: Rig) -> None:
    program = rig.engine.program([], [], [0, 1])
    assert len(program) == 0
    assert rig.engine.stream(program) == 0


def test_a_page_on_the_device_needs_no_stream(rig: Rig) -> None:
    with pytest.raises(AssertionError):
        rig.engine.program([DEVICE], [0], [0])


# -- races, forced


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
