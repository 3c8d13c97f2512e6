"""Two ways to read KV from a file that anybody would try first."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tokenvm.bench.seed import Pages
from tokenvm.memory.cpu import AnonymousRegion
from tokenvm.memory.disk import nameless_file, set_direct

LIBC = ctypes.CDLL(None, use_errno=True)


HUGE = 2 << 20


class KvFile:
    """Whole pages in a file, layer by layer, so that a layer is one sequential read: the best case for read-ahead.

    A layer begins at a multiple of 2 MiB: the system keeps what it reads ahead in pieces of up to that size, and never
    gives up half of one.
    """

    def __init__(self, folder: Path, pages: Pages, count: int) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.count = count
        _, self.layers, self.part_bytes = pages.parts.shape
        self.layer_stride = -(-count * self.part_bytes // HUGE) * HUGE
        self.fd = nameless_file(folder)
        for layer in range(self.layers):
            for page in range(count):
                os.pwrite(self.fd, pages.page(page)[layer].tobytes(), self.offset(layer, page))
        os.ftruncate(self.fd, self.nbytes)
        os.fsync(self.fd)
        self.direct_fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY)

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return self.layers * self.layer_stride

    def offset(self, layer: int, page: int) -> int:
        """Where a part lies."""
        return layer * self.layer_stride + page * self.part_bytes

    def close(self) -> None:
        """Give the file up."""
        os.close(self.direct_fd)
        os.close(self.fd)


class Mapped:
    """Parts read in place from a mapping of the file; at most `limit_bytes` of it stay resident after a layer."""

    title = "mmap"

    def __init__(self, file: KvFile, limit_bytes: int) -> None:
        self._file = file
        self._map = mmap.mmap(file.fd, file.nbytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._base = np.frombuffer(self._map, np.uint8).ctypes.data
        self._kept = max(1, limit_bytes // file.layer_stride)
        self._recent: OrderedDict[int, None] = OrderedDict()
        LIBC.madvise(ctypes.c_void_p(self._base), ctypes.c_size_t(file.nbytes), mmap.MADV_DONTNEED)
        os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def rounds(self, layer: int) -> Iterator[tuple[int, int]]:
        """Yield (first page, address of its part): all pages of a layer lie one after another."""
        for page in range(self._file.count):
            yield page, self._base + self._file.offset(layer, page)

    def used(self, layer: int) -> None:
        """Hear that a layer was attended; give up what is beyond the limit."""
        self._recent[layer] = None
        self._recent.move_to_end(layer)
        while len(self._recent) > self._kept:
            self._give_up(self._recent.popitem(last=False)[0])

    def _give_up(self, layer: int) -> None:
        begin = self._file.offset(layer, 0)
        address, length = ctypes.c_void_p(self._base + begin), ctypes.c_size_t(self._file.layer_stride)
        LIBC.madvise(address, length, mmap.MADV_DONTNEED)
        os.posix_fadvise(self._file.fd, begin, self._file.layer_stride, os.POSIX_FADV_DONTNEED)

    @property
    def at_once(self) -> bool:
        """Whether a layer is attended in one call: nothing moves while it is."""
        return True

    def resident_bytes(self) -> int:
        """Return how much of the file is in memory, as the system says."""
        flags = np.zeros(-(-self._file.nbytes // mmap.PAGESIZE), np.uint8)
        length = ctypes.c_size_t(self._file.nbytes)
        if LIBC.mincore(ctypes.c_void_p(self._base), length, ctypes.c_void_p(flags.ctypes.data)):
            raise OSError(ctypes.get_errno(), "mincore")
        return int((flags & 1).sum()) * mmap.PAGESIZE

    def close(self) -> None:
        """Leave the mapping to the end of the process: its address was handed out."""


class MappedFixed(Mapped):
    """The same, but the first layers that fit stay for good: a cyclic scan never finds what LRU keeps."""

    title = "mmap, fixed part kept"

    def used(self, layer: int) -> None:
        """Hear that a layer was attended; give it up unless it stays."""
        if layer >= self._kept:
            self._give_up(layer)


class OnDemand:
    """An arena of parts under LRU; what is missing is read by one blocking call."""

    title = "demand"

    def __init__(self, file: KvFile, limit_bytes: int) -> None:
        self._file = file
        self._slots = max(1, limit_bytes // file.part_bytes)
        self._arena = AnonymousRegion(self._slots * file.part_bytes)
        raw = (ctypes.c_char * self._arena.nbytes).from_address(self._arena.address)
        self._bytes = memoryview(raw).cast("B")
        self._fd = file.direct_fd if _reads_directly(file.direct_fd) else file.fd
        self._where: OrderedDict[tuple[int, int], int] = OrderedDict()

    def rounds(self, layer: int) -> Iterator[tuple[int, int]]:
        """Yield (page, address of its part) as it arrives."""
        for page in range(self._file.count):
            yield page, self._arena.address + self._slot(layer, page) * self._file.part_bytes

    def used(self, layer: int) -> None:
        """Nothing to give up: slots are taken when they are needed."""

    @property
    def at_once(self) -> bool:
        """Whether a layer is attended in one call; a slot may be overwritten by the next part."""
        return False

    def resident_bytes(self) -> int:
        """Return the size of the arena: all of it has been used."""
        return self._arena.nbytes

    def close(self) -> None:
        """Nothing outlives it but its memory."""

    def _slot(self, layer: int, page: int) -> int:
        key = layer, page
        if key in self._where:
            self._where.move_to_end(key)
            return self._where[key]
        slot = len(self._where) if len(self._where) < self._slots else self._where.popitem(last=False)[1]
        begin = slot * self._file.part_bytes
        target = self._bytes[begin : begin + self._file.part_bytes]
        assert os.preadv(self._fd, [target], self._file.offset(layer, page)) == self._file.part_bytes
        self._where[key] = slot
        return slot


def _reads_directly(fd: int) -> bool:
    """Turn direct I/O on, if it can be had."""
    try:
        set_direct(fd)
        with mmap.mmap(-1, 4096) as block:
            return os.preadv(fd, [block], 0) == 4096
    except OSError:
        return False
