"""A disk store without direct I/O: the page cache would not count against any limit, so it keeps nothing."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tokenvm.memory.cpu import CpuDevice
from tokenvm.memory.device import DeviceArena
from tokenvm.memory.disk import DiskStore
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.transfer import TransferEngine
from tokenvm.vocab import Answer, Move, SlotId, Tier, UnitId

LAYOUT = PageLayout(layers=4, part_bytes=96 << 10)
PAGES = 24


class Buffered:
    """An arena, a store of the same size that goes through the page cache, and what moves between them."""

    def __init__(self, path: Path) -> None:
        self.backend = CpuDevice(2, 1 << 20)
        self.arena = DeviceArena(self.backend, PAGES, LAYOUT)
        self.disk = DiskStore(path, PAGES * LAYOUT.page_bytes, LAYOUT, direct=False)
        self.region = self.backend.allocate(LAYOUT.part_stride)
        ring = self.backend.ring(self.region.address, 1, LAYOUT.part_stride)
        self.engine = TransferEngine(self.backend, {Tier.DEVICE: self.arena, Tier.DISK: self.disk}, ring)

    def move(self, source: Tier, target: Tier) -> Answer:
        slots = map(SlotId, range(PAGES))
        return self.engine.submit([Move(UnitId(slot), source, slot, target, slot) for slot in slots]).wait()

    def cached_bytes(self) -> int:
        """What the page cache holds of the store's files (mincore)."""
        fds = set(self.disk.places(np.arange(PAGES), 0).fd.tolist())
        return sum(cached_bytes(fd) for fd in fds)

    def close(self) -> None:
        self.backend.close()
        self.arena.close()
        self.disk.close()


def cached_bytes(fd: int) -> int:
    size = os.fstat(fd).st_size
    view = np.frombuffer(mmap.mmap(fd, size, prot=mmap.PROT_READ), np.uint8)
    pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(pages.ctypes.data))
    assert libc.mincore(*arguments) == 0, os.strerror(ctypes.get_errno())
    return int((pages & 1).sum()) * mmap.PAGESIZE


@pytest.fixture
def buffered(disk_path: Path) -> Iterator[Buffered]:
    store = Buffered(disk_path)
    yield store
    store.close()


def test_the_page_cache_keeps_neither_what_was_written_nor_what_was_read(buffered: Buffered) -> None:
    buffered.arena.ensure(PAGES)
    buffered.disk.ensure(PAGES)
    assert buffered.move(Tier.DEVICE, Tier.DISK) is Answer.HIT
    assert buffered.cached_bytes() == 0
    assert buffered.move(Tier.DISK, Tier.DEVICE) is Answer.HIT
    assert buffered.cached_bytes() == 0


def test_what_others_read_would_stay(buffered: Buffered) -> None:
    """The measurement sees bytes in the page cache where there are some."""
    buffered.disk.ensure(PAGES)
    assert not buffered.disk.direct
    for fd in set(buffered.disk.places(np.arange(PAGES), 0).fd.tolist()):
        os.pwrite(fd, bytes(LAYOUT.part_stride), 0)
    assert buffered.cached_bytes() > 0
