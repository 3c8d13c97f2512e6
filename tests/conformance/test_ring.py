"""What every backend's staging ring promises."""

from __future__ import annotations

import os

import numpy as np
import pytest
from numpy.typing import NDArray
from parts import PART, OnBackend, bytes_at, checksums_of, copies, pattern, program

from tokenvm.bench.link import LinkedDevice
from tokenvm.memory.backend import DeviceBackend, Kind
from tokenvm.memory.cpu import CpuDevice, crc32c
from tokenvm.memory.sim import SimDevice
from tokenvm.vocab import Answer


class RingConformance(OnBackend):
    """Inherit and give `make`."""

    @pytest.fixture
    def slab(self, file: int) -> NDArray[np.uint8]:
        """Sixteen parts in the file."""
        data = pattern(16 * PART, seed=1)
        os.pwrite(file, data.tobytes(), 0)
        return data

    @pytest.mark.parametrize(("slots", "seed"), [(1, 0), (2, 1), (3, 2), (5, 3), (8, 4), (16, 5)])
    def test_the_ring_delivers_in_order(
        self, device: DeviceBackend, file: int, slab: NDArray[np.uint8], slots: int, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        region = device.allocate(slots * PART)
        ring = device.ring(region.address, slots, PART)
        checksums = checksums_of(slab)
        wanted: list[int] = []  # ticket → part of the slab
        released = 0
        for _ in range(40):
            if rng.random() < 0.5:  # often a run of neighbours, sometimes none at all
                start, length = int(rng.integers(16)), int(rng.integers(8))
                parts = [(start + i) % 16 for i in range(length)]
                if rng.random() < 0.3:
                    rng.shuffle(parts)
                first = ring.submit(program(file, [p * PART for p in parts], checksums[parts]))
                assert first == len(wanted)
                wanted += parts
            end = min(len(wanted), released + int(rng.integers(slots + 1)))
            assert ring.wait(end) is Answer.HIT
            for ticket, address in enumerate(ring.addresses(released, end).tolist(), start=released):
                assert address == region.address + ticket % slots * PART
                part = wanted[ticket]
                assert (bytes_at(address, PART) == slab[part * PART : (part + 1) * PART]).all()
            released = int(rng.integers(released, end + 1))
            ring.release(released)

    def test_nothing_is_written_into_a_slot_not_released(
        self, device: DeviceBackend, file: int, slab: NDArray[np.uint8]
    ) -> None:
        region = device.allocate(3 * PART)
        ring = device.ring(region.address, 3, PART)
        ring.submit(program(file, [p * PART for p in range(16)], checksums_of(slab)))
        for first in range(14):
            assert ring.wait(first + 3) is Answer.HIT
            for _ in range(100):  # whatever else the ring could start would land meanwhile
                device.copies().submit(copies(Kind.READ, -1, [], []), urgent=True).poll()
            for ticket in range(first, first + 3):
                held = bytes_at(int(ring.addresses(ticket, ticket + 1)[0]), PART)
                assert (held == slab[ticket * PART : (ticket + 1) * PART]).all()
            ring.release(first + 1)
        assert ring.wait(16) is Answer.HIT

    def test_programs_queue_behind_one_another(
        self, device: DeviceBackend, file: int, slab: NDArray[np.uint8]
    ) -> None:
        region = device.allocate(4 * PART)
        ring = device.ring(region.address, 4, PART)
        checksums = checksums_of(slab)
        assert [ring.submit(program(file, [i * PART], checksums[[i]])) for i in range(4)] == [0, 1, 2, 3]
        assert ring.wait(4) is Answer.HIT
        assert (bytes_at(region.address, 4 * PART) == slab[: 4 * PART]).all()

    def test_memory_sources_and_short_entries(self, device: DeviceBackend) -> None:
        region = device.allocate(4 * PART)
        host = bytes_at(region.address + 2 * PART, 100)
        host[:] = pattern(100)
        checksum = np.array([crc32c(region.address + 2 * PART, 100)], np.uint32)
        ring = device.ring(region.address, 2, PART)
        end = ring.submit(program(-1, [region.address + 2 * PART], checksum, Kind.COPY_IN, nbytes=100)) + 1
        assert ring.wait(end) is Answer.HIT
        assert (bytes_at(region.address, 100) == host).all()
        assert device.moved_bytes()["h2d"] == 100

    def test_a_damaged_ticket_fails_alone(
        self, device: DeviceBackend, file: int, slab: NDArray[np.uint8]
    ) -> None:
        checksums = checksums_of(slab)[:6]
        checksums[[1, 4]] ^= 1
        region = device.allocate(8 * PART)
        ring = device.ring(region.address, 8, PART)
        ring.submit(program(file, [i * PART for i in range(6)], checksums))
        assert ring.wait(1) is Answer.HIT
        assert ring.wait(6) is Answer.MISS
        assert ring.failed(0, 6).tolist() == [1, 4]
        assert ring.failed(2, 4).tolist() == []
        bad, good = ring.addresses(1, 2)[0], ring.addresses(5, 6)[0]
        assert (bytes_at(int(bad), PART) == 0xFF).all()
        assert (bytes_at(int(good), PART) == slab[5 * PART : 6 * PART]).all()
        ring.release(5)
        assert ring.wait(6) is Answer.HIT, "what was released is not asked about again"
        assert ring.failed(0, 6).tolist() == [1, 4], "failures are remembered until cancel"

    def test_a_ticket_beyond_the_end_of_the_file_fails(self, device: DeviceBackend, file: int) -> None:
        os.ftruncate(file, PART)
        region = device.allocate(4 * PART)
        ring = device.ring(region.address, 4, PART)
        zero = checksums_of(np.zeros(PART, np.uint8))
        ring.submit(program(file, [0, PART], np.repeat(zero, 2)))
        assert ring.wait(2) is Answer.MISS
        assert ring.failed(0, 2).tolist() == [1]

    @pytest.mark.parametrize("consumed", range(4))
    def test_cancel_makes_the_next_submit_start_clean(
        self, device: DeviceBackend, file: int, slab: NDArray[np.uint8], consumed: int
    ) -> None:
        checksums = checksums_of(slab)
        region = device.allocate(4 * PART)
        ring = device.ring(region.address, 4, PART)
        bad = checksums.copy()
        bad[0] ^= 1
        for round_ in range(8):
            end = ring.submit(program(file, [i * PART for i in range(16)], bad)) + consumed
            ring.wait(end)
            ring.release(end - consumed // 2)
            ring.cancel()
            quiet = bytes_at(region.address, 4 * PART).copy()
            assert ring.failed(0, 10**6).tolist() == []
            assert (bytes_at(region.address, 4 * PART) == quiet).all()
            first = ring.submit(program(file, [i * PART for i in (9, 8, 7)], checksums[[9, 8, 7]]))
            assert first == round_ * 19 + 16, "tickets go on ascending"
            assert ring.wait(first + 3) is Answer.HIT
            for i, address in enumerate(ring.addresses(first, first + 3).tolist()):
                assert (bytes_at(address, PART) == slab[(9 - i) * PART : (10 - i) * PART]).all()
            ring.release(first + 3)

    def test_misuse_of_the_ring_is_refused(self, device: DeviceBackend, file: int) -> None:
        os.ftruncate(file, 4 * PART)
        zero = np.repeat(checksums_of(np.zeros(PART, np.uint8)), 3)
        region = device.allocate(2 * PART)
        ring = device.ring(region.address, 2, PART)
        ring.submit(program(file, [0, 0, 0], zero))
        with pytest.raises(IndexError):
            ring.wait(4)  # never submitted
        with pytest.raises(IndexError):
            ring.wait(3)  # would wait for ever: the consumer has released nothing
        with pytest.raises(IndexError):
            ring.release(3)  # has not started
        with pytest.raises(ValueError):
            ring.submit(program(file, [0], zero[:1], nbytes=PART + 1))
        with pytest.raises(ValueError):
            ring.submit(program(file, [0], zero[:1], kind=Kind.WRITE))
        assert ring.wait(2) is Answer.HIT


class TestCpuDevice(RingConformance):
    make = staticmethod(lambda: CpuDevice(threads=3))


class TestCpuDeviceOneThread(RingConformance):
    make = staticmethod(lambda: CpuDevice(threads=1, read_bytes=2 * PART))


class TestSimDevice(RingConformance):
    make = staticmethod(lambda: SimDevice(seed=0))


class TestSimDeviceOtherOrder(RingConformance):
    make = staticmethod(lambda: SimDevice(seed=7))


class TestLinkedDevice(RingConformance):
    make = staticmethod(lambda: LinkedDevice(CpuDevice(threads=2), 1e9))


class TestLinkedSimDevice(RingConformance):
    make = staticmethod(lambda: LinkedDevice(SimDevice(seed=3), 1e9))
