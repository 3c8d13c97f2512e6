"""What every tier's store promises about its slots, and that bytes put there come back."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tokenvm.errors import StorageError
from tokenvm.memory.backend import OUTWARD, Check, Copies, Kind
from tokenvm.memory.cpu import CpuDevice
from tokenvm.memory.device import DeviceArena
from tokenvm.memory.disk import DiskStore
from tokenvm.memory.host import HostPool
from tokenvm.memory.kept_disk import Keep, KeptDiskStore
from tokenvm.memory.kept_size import geometry_of_store, limit_for
from tokenvm.memory.layout import ALIGNMENT_BYTES, PageLayout
from tokenvm.memory.tier import NullStore, Places, TierStore
from tokenvm.vocab import Answer, Tier

LAYOUT = PageLayout(layers=3, part_bytes=5000)  # two blocks of 4 KiB, the second one partly padding
PAGES = 7


class StoreConformance:
    """Inherit and give `make`: a store of `capacity` slots on a device."""

    capacity = PAGES
    tier: Tier

    def make(self, device: CpuDevice, path: Path) -> TierStore:
        raise NotImplementedError

    @pytest.fixture
    def device(self) -> Iterator[CpuDevice]:
        device = CpuDevice(threads=2)
        yield device
        device.close()

    @pytest.fixture
    def store(self, device: CpuDevice, tmp_path: Path) -> Iterator[TierStore]:
        store = self.make(device, tmp_path / "pages")
        yield store
        store.close()

    def every_part(self, store: TierStore) -> Places:
        return store.places(np.arange(self.capacity)[None, :], np.arange(LAYOUT.layers)[:, None])

    def test_says_what_it_is(self, store: TierStore) -> None:
        assert store.tier is self.tier
        assert store.capacity == self.capacity
        assert store.layout == LAYOUT
        assert store.checksums.shape == (self.capacity, LAYOUT.layers)
        assert store.checksums.dtype == np.uint32

    def test_space_grows_up_to_its_capacity_and_no_further(self, store: TierStore) -> None:
        before = store.high_water_bytes
        assert before == 0
        for slots in range(self.capacity + 1):
            store.ensure(slots)
            assert before <= store.high_water_bytes <= self.capacity * LAYOUT.page_bytes
            assert slots * LAYOUT.page_bytes <= store.high_water_bytes
            before = store.high_water_bytes
        store.ensure(0)
        assert store.high_water_bytes == before
        with pytest.raises(StorageError, match=r"limit|host_memory"):
            store.ensure(self.capacity + 1)

    def test_parts_are_aligned_and_apart(self, store: TierStore) -> None:
        store.ensure(self.capacity)
        places = self.every_part(store)
        assert places.kind.shape == places.fd.shape == places.place.shape == (LAYOUT.layers, self.capacity)
        assert (places.kind & OUTWARD == 0).all()
        assert (places.place % np.uint64(ALIGNMENT_BYTES) == 0).all()
        begins = sorted(zip(places.fd.ravel().tolist(), places.place.ravel().tolist(), strict=True))
        for (fd, begin), (next_fd, next_begin) in itertools.pairwise(begins):
            assert fd != next_fd or begin + LAYOUT.part_stride <= next_begin

    def test_places_of_many_are_the_places_of_each(self, store: TierStore) -> None:
        store.ensure(self.capacity)
        places = self.every_part(store)
        for layer, slot in np.ndindex(places.place.shape):
            one = store.places(slot, layer)
            assert one.place == places.place[layer, slot]
            assert one.fd == places.fd[layer, slot]
            assert one.kind == places.kind[layer, slot]

    def test_bytes_come_back(self, store: TierStore, device: CpuDevice) -> None:
        store.ensure(self.capacity)
        parts = LAYOUT.layers * self.capacity
        region = device.allocate(max(1, 2 * parts * LAYOUT.part_stride))
        flat = (ctypes.c_uint8 * region.nbytes).from_address(region.address)
        data = np.ctypeslib.as_array(flat)[: 2 * parts * LAYOUT.part_stride].reshape(2, -1)
        data[0] = np.random.default_rng(3).integers(0, 256, data.shape[1], dtype=np.uint8)
        near = region.address + np.arange(parts, dtype=np.uint64) * np.uint64(LAYOUT.part_stride)
        away = self.copies(self.every_part(store), near, outward=True)
        assert device.copies().submit(away, urgent=False).wait() is Answer.HIT
        back = self.copies(self.every_part(store), near + np.uint64(data.shape[1]), outward=False)
        assert device.copies().submit(back, urgent=True).wait() is Answer.HIT
        assert (data[0] == data[1]).all()

    def copies(self, places: Places, near: NDArray[np.uint64], outward: bool) -> Copies:
        n = places.place.size
        return Copies(
            kind=places.kind.ravel() | np.uint8(OUTWARD if outward else 0),
            check=np.full(n, Check.NONE, np.uint8),
            fd=np.ascontiguousarray(places.fd).ravel(),
            place=places.place.ravel(),
            address=near,
            nbytes=np.full(n, LAYOUT.part_stride, np.uint64),
            checksum=np.zeros(n, np.uint32),
        )

    def test_closing_twice_is_closing(self, store: TierStore) -> None:
        store.ensure(min(1, self.capacity))
        store.close()
        store.close()


class TestDeviceArena(StoreConformance):
    tier = Tier.DEVICE

    def make(self, device: CpuDevice, path: Path) -> TierStore:
        return DeviceArena(device, PAGES, LAYOUT)


class TestHostPool(StoreConformance):
    tier = Tier.HOST

    def make(self, device: CpuDevice, path: Path) -> TierStore:
        return HostPool(device, PAGES, LAYOUT)


class TestDiskStore(StoreConformance):
    tier = Tier.DISK

    def make(self, device: CpuDevice, path: Path) -> TierStore:
        return DiskStore(path, PAGES * LAYOUT.page_bytes + 100, LAYOUT)


class TestDiskStoreBuffered(StoreConformance):
    tier = Tier.DISK

    def make(self, device: CpuDevice, path: Path) -> TierStore:
        return DiskStore(path, PAGES * LAYOUT.page_bytes, LAYOUT, direct=False)


class TestDiskStoreOfSmallSlabs(StoreConformance):
    tier = Tier.DISK

    def make(self, device: CpuDevice, path: Path) -> TierStore:
        return DiskStore(path, PAGES * LAYOUT.page_bytes, LAYOUT, slab_pages=3)


class TestKeptDiskStore(StoreConformance):
    tier = Tier.DISK

    def make(self, device: CpuDevice, path: Path) -> TierStore:
        limit = limit_for(PAGES, geometry_of_store(LAYOUT))
        return KeptDiskStore(path, limit, LAYOUT, Keep(bytes(16)), slab_pages=1)


class TestNullStore(StoreConformance):
    tier = Tier.HOST
    capacity = 0

    def make(self, device: CpuDevice, path: Path) -> TierStore:
        return NullStore(Tier.HOST, LAYOUT)


def test_a_null_store_has_no_slot_zero() -> None:
    with pytest.raises(AssertionError):
        NullStore(Tier.DISK, LAYOUT).places([0], 0)


def test_a_disk_reads_and_memory_copies(tmp_path: Path) -> None:
    disk = DiskStore(tmp_path, LAYOUT.page_bytes, LAYOUT)
    disk.ensure(1)
    assert disk.places(0, 0).kind == Kind.READ
    device = CpuDevice(threads=1)
    assert HostPool(device, 1, LAYOUT).places(0, 0).kind == Kind.COPY_IN
    disk.close()
    device.close()
