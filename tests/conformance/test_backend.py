"""What every device backend promises: memory, batches of copies, the staging ring."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tokenvm.errors import StorageError
from tokenvm.memory.backend import Check, Copies, DeviceBackend, Kind, Program, Status
from tokenvm.memory.cpu import CpuDevice, crc32c
from tokenvm.memory.sim import SimDevice
from tokenvm.vocab import Answer

PART = 4096


def bytes_at(address: int, nbytes: int) -> NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def pattern(nbytes: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


def checksums_of(data: NDArray[np.uint8]) -> NDArray[np.uint32]:
    base = data.ctypes.data
    return np.array([crc32c(base + i, PART) for i in range(0, data.size, PART)], np.uint32)


def copies(
    kind: Kind,
    fd: int,
    places: list[int],
    addresses: list[int],
    checksums: NDArray[np.uint32] | None = None,
    check: Check = Check.COMPUTE,
    nbytes: int = PART,
) -> Copies:
    n = len(places)
    return Copies(
        kind=np.full(n, kind, np.uint8),
        check=np.full(n, check, np.uint8),
        fd=np.full(n, fd, np.int32),
        place=np.array(places, np.uint64),
        address=np.array(addresses, np.uint64),
        nbytes=np.full(n, nbytes, np.uint64),
        checksum=np.zeros(n, np.uint32) if checksums is None else checksums,
    )


def program(
    fd: int, places: list[int], checksums: NDArray[np.uint32], kind: Kind = Kind.READ, nbytes: int = PART
) -> Program:
    c = copies(kind, fd, places, [0] * len(places), checksums, Check.VERIFY, nbytes)
    return Program(c.kind, c.check, c.fd, c.place, c.nbytes, c.checksum)


class BackendConformance:
    """Inherit and give `make`."""

    make: Callable[[], DeviceBackend]

    @pytest.fixture
    def device(self) -> Iterator[DeviceBackend]:
        device = type(self).make()
        yield device
        device.close()

    @pytest.fixture
    def file(self, tmp_path: Path) -> Iterator[int]:
        fd = os.open(tmp_path / "slab", os.O_RDWR | os.O_CREAT)
        yield fd
        os.close(fd)

    # -- memory

    def test_memory_is_aligned_zero_and_never_empty(self, device: DeviceBackend) -> None:
        for asked in (0, 1, PART, PART + 1):
            region = device.allocate(asked)
            assert region.address % PART == 0
            assert region.nbytes >= max(asked, 1)
            assert not bytes_at(region.address, region.nbytes).any()
            region.close()
            region.close()

    def test_more_memory_than_there_is_names_the_setting(self, device: DeviceBackend) -> None:
        with pytest.raises(StorageError, match="lower vram_limit"):
            device.allocate(1 << 60)

    def test_fill(self, device: DeviceBackend) -> None:
        region = device.allocate(2 * PART)
        device.fill(region.address, 0xFF, PART)
        assert (bytes_at(region.address, PART) == 0xFF).all()
        assert not bytes_at(region.address + PART, PART).any()

    # -- copies

    def test_what_was_written_is_read_back(self, device: DeviceBackend, file: int) -> None:
        region = device.allocate(8 * PART)
        data = bytes_at(region.address, 8 * PART)
        data[: 4 * PART] = pattern(4 * PART)
        places = [3 * PART, 0, PART, 2 * PART]  # continues itself only from the second copy on
        source = [region.address + i * PART for i in range(4)]
        written = device.copies().submit(copies(Kind.WRITE, file, places, source), urgent=False)
        assert written.wait() is Answer.HIT
        result = written.result()
        assert (result.status == Status.LANDED).all()
        assert (result.checksums == checksums_of(data[: 4 * PART])).all()
        target = [region.address + i * PART for i in (7, 6, 5, 4)]
        back = copies(Kind.READ, file, places, target, result.checksums, Check.VERIFY)
        assert device.copies().submit(back, urgent=True).wait() is Answer.HIT
        for i in range(4):
            assert (data[(7 - i) * PART :][:PART] == data[i * PART :][:PART]).all()
        assert device.moved_bytes() == {"nvme_read": 4 * PART, "nvme_write": 4 * PART, "h2d": 0, "d2h": 0}

    def test_memory_copies_go_both_ways(self, device: DeviceBackend) -> None:
        region = device.allocate(4 * PART)
        data = bytes_at(region.address, 4 * PART)
        data[:PART] = pattern(PART)
        host, device_side, back = (region.address + i * PART for i in (0, 1, 2))
        moved_in = device.copies().submit(copies(Kind.COPY_IN, -1, [host], [device_side]), urgent=True)
        assert moved_in.wait() is Answer.HIT
        moved_out = device.copies().submit(copies(Kind.COPY_OUT, -1, [back], [device_side]), urgent=True)
        assert moved_out.wait() is Answer.HIT
        assert (data[2 * PART : 3 * PART] == data[:PART]).all()
        assert moved_in.result().checksums == moved_out.result().checksums == checksums_of(data[:PART])
        assert (device.moved_bytes()["h2d"], device.moved_bytes()["d2h"]) == (PART, PART)

    def test_no_copies_have_landed(self, device: DeviceBackend) -> None:
        batch = device.copies().submit(copies(Kind.READ, -1, [], []), urgent=False)
        assert batch.poll() is Answer.HIT
        assert len(batch.result().status) == 0

    def test_polling_ends(self, device: DeviceBackend, file: int) -> None:
        region = device.allocate(PART)
        batch = device.copies().submit(copies(Kind.WRITE, file, [0], [region.address]), urgent=False)
        while (answer := batch.poll()) is Answer.IN_FLIGHT:
            pass
        assert answer is Answer.HIT
        assert batch.result() is batch.result()
        assert batch.poll() is batch.wait() is Answer.HIT

    def test_damaged_bytes_are_never_delivered(self, device: DeviceBackend, file: int) -> None:
        data = pattern(3 * PART)
        checksums = checksums_of(data)
        data[PART + 17] ^= 1
        os.pwrite(file, data.tobytes(), 0)
        region = device.allocate(3 * PART)
        places = [0, PART, 2 * PART]
        target = [region.address + p for p in places]
        batch = device.copies().submit(
            copies(Kind.READ, file, places, target, checksums, Check.VERIFY), urgent=True
        )
        assert batch.wait() is Answer.MISS
        assert batch.result().status.tolist() == [Status.LANDED, Status.DAMAGED, Status.LANDED]
        assert (bytes_at(target[1], PART) == 0xFF).all()
        assert (bytes_at(target[2], PART) == data[2 * PART :]).all()

    def test_a_short_file_fails_only_what_it_lacks(self, device: DeviceBackend, file: int) -> None:
        os.ftruncate(file, PART + 100)
        region = device.allocate(3 * PART)
        places = [0, PART, 2 * PART]
        batch = device.copies().submit(
            copies(Kind.READ, file, places, [region.address + p for p in places]), urgent=True
        )
        assert batch.result().status.tolist() == [Status.LANDED, Status.SHORT, Status.SHORT]
        assert (bytes_at(region.address + PART, 2 * PART) == 0xFF).all()
        assert not bytes_at(region.address, PART).any()

    def test_a_device_error_fails_the_copy(self, device: DeviceBackend) -> None:
        region = device.allocate(PART)
        unmapped = os.open("/proc/self/mem", os.O_RDONLY)
        batch = device.copies().submit(copies(Kind.READ, unmapped, [0], [region.address]), urgent=True)
        assert batch.result().status.tolist() == [Status.FAILED]
        os.close(unmapped)

    def test_a_full_disk_fails_the_copy(self, device: DeviceBackend) -> None:
        region = device.allocate(PART)
        full = os.open("/dev/full", os.O_RDWR)
        batch = device.copies().submit(copies(Kind.WRITE, full, [0], [region.address]), urgent=False)
        assert batch.wait() is Answer.MISS
        assert batch.result().status.tolist() == [Status.NO_SPACE]
        assert not bytes_at(region.address, PART).any(), "the source of a failed write keeps its bytes"
        os.close(full)

    def test_a_file_size_limit_fails_only_what_is_beyond(self, device: DeviceBackend, file: int) -> None:
        limit = 64 << 20
        region = device.allocate(2 * PART)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        places = [limit - PART, limit]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            write = copies(Kind.WRITE, file, places, [region.address, region.address + PART])
            result = device.copies().submit(write, urgent=False).result()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert result.status.tolist() == [Status.LANDED, Status.NO_SPACE]

    def test_busy_intervals_ascend_and_are_told_once(self, device: DeviceBackend, file: int) -> None:
        region = device.allocate(PART)
        for _ in range(3):
            device.copies().submit(copies(Kind.WRITE, file, [0], [region.address]), urgent=False).wait()
        intervals = device.drain_intervals(outward=True)
        assert 1 <= len(intervals) <= 3
        assert (np.diff(intervals.ravel()) >= 0).all()
        assert device.drain_intervals(outward=True).shape == (0, 2)
        assert device.drain_intervals(outward=False).shape == (0, 2)

    def test_nothing_starts_after_close(self, device: DeviceBackend, file: int) -> None:
        region = device.allocate(4 * PART)
        ring = device.ring(region.address, 2, PART)
        ring.submit(program(file, [0, 0, 0], np.zeros(3, np.uint32)))
        device.close()
        device.close()
        assert ring.wait(2) is Answer.MISS
        with pytest.raises(RuntimeError):
            device.copies().submit(copies(Kind.WRITE, file, [0], [region.address]), urgent=False)
        with pytest.raises(RuntimeError):
            ring.submit(program(file, [0], np.zeros(1, np.uint32)))
        ring.cancel()

    # -- the ring

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


class TestCpuDevice(BackendConformance):
    make = staticmethod(lambda: CpuDevice(threads=3))


class TestCpuDeviceOneThread(BackendConformance):
    make = staticmethod(lambda: CpuDevice(threads=1, read_bytes=2 * PART))


class TestSimDevice(BackendConformance):
    make = staticmethod(lambda: SimDevice(seed=0))


class TestSimDeviceOtherOrder(BackendConformance):
    make = staticmethod(lambda: SimDevice(seed=7))
