"""Whole pages between tiers and streams through the ring, on threads and on simulated races."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rig import DEVICE, DISK, HOST, LAYOUT, PAGES, RING_SLOTS, Rig, content_of, move

from tokenvm.errors import StorageError
from tokenvm.memory.backend import DeviceBackend
from tokenvm.memory.cpu import CpuDevice, crc32c
from tokenvm.memory.sim import SimDevice
from tokenvm.vocab import Answer, Tier

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
