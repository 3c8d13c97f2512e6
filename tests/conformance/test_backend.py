"""What every device backend promises about memory and batches of copies."""

from __future__ import annotations

import os
import resource

import numpy as np
import pytest
from parts import PART, OnBackend, bytes_at, checksums_of, copies, pattern, program

from tokenvm.bench.link import LinkedDevice
from tokenvm.errors import StorageError
from tokenvm.memory.backend import Check, DeviceBackend, Kind, Status
from tokenvm.memory.cpu import CpuDevice
from tokenvm.memory.sim import SimDevice
from tokenvm.vocab import Answer


class BackendConformance(OnBackend):
    """Inherit and give `make`."""

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


class TestCpuDevice(BackendConformance):
    make = staticmethod(lambda: CpuDevice(threads=3))


class TestCpuDeviceOneThread(BackendConformance):
    make = staticmethod(lambda: CpuDevice(threads=1, read_bytes=2 * PART))


class TestSimDevice(BackendConformance):
    make = staticmethod(lambda: SimDevice(seed=0))


class TestSimDeviceOtherOrder(BackendConformance):
    make = staticmethod(lambda: SimDevice(seed=7))


class TestLinkedDevice(BackendConformance):
    make = staticmethod(lambda: LinkedDevice(CpuDevice(threads=2), 1e9))


class TestLinkedSimDevice(BackendConformance):
    make = staticmethod(lambda: LinkedDevice(SimDevice(seed=3), 1e9))
