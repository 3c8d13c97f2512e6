"""The physical floor of this machine, measured in the same run as what is held against it."""

from __future__ import annotations

import ctypes
import mmap
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tokenvm.kernels.native import set_threads, threads
from tokenvm.kernels.paging import fill
from tokenvm.kernels.peak import read_all, run_peak
from tokenvm.memory.cpu import AnonymousRegion
from tokenvm.memory.disk import direct_works, nameless_file

FILE_BYTES = 256 << 20
SIZES = (256 << 10, 1 << 20, 4 << 20)
DEPTHS = (1, 2, 4, 8)

HUGE_BYTES = 2 << 20
"""A huge page of the system, and where a buffer begins that is to be made of them."""

_RAM_BYTES = 256 << 20
_PEAK_ROUNDS = 100_000

Rates = dict[str, float]


class Way(NamedTuple):
    """A way to read or write a file: bytes of each call, calls in flight, past the page cache or through it.

    `huge`: from or to huge pages of memory, which lie in one piece, so that a call needs fewer requests to the disk.
    """

    nbytes: int
    depth: int
    direct: bool
    huge: bool = False


class Probe:
    """Measures memory and disk again and again, each time in a fraction of a second.

    The best way to read the disk is found at birth, over all sizes and depths, past the page cache and through it.
    """

    def __init__(self, file: ProbeFile, threads: int) -> None:
        self._file = file
        self._threads = threads
        self._buffer = AnonymousRegion(_RAM_BYTES)
        fill(self._buffer.address, _RAM_BYTES, 1)
        rates = {way: file.read_rate(way) for way in file.ways()}
        self._best = sorted(rates, key=lambda way: rates[way])[-3:]

    def rates(self) -> Rates:
        """Return the best rates right now, bytes a second: of memory with all threads, of the disk."""
        return {
            "ram_bytes_per_s": ram_bandwidth(self._threads, self._buffer),
            "disk_bytes_per_s": max(self._file.read_rate(way) for way in self._best),
        }

    def close(self) -> None:
        """Give the buffer back."""
        self._buffer.close()


@contextmanager
def probing(folder: Path, threads: int) -> Iterator[Probe]:
    """Lend a probe whose file lies in `folder`."""
    with probe_file(folder) as file:
        probe = Probe(file, threads)
        try:
            yield probe
        finally:
            probe.close()


def better_rates(before: Rates, after: Rates) -> Rates:
    """Return what a run is held against that was measured before and after: the better of the two."""
    return {name: max(before[name], after[name]) for name in before}


def median_rates(rates: list[Rates]) -> Rates:
    """Return the medians of several runs' rates."""
    return {name: statistics.median(each[name] for each in rates) for name in rates[0]}


def ram_bandwidth(threads: int, buffer: AnonymousRegion | None = None, repeats: int = 3) -> float:
    """Return the best rate, bytes a second, at which `threads` threads read a buffer far larger than any cache.

    Two readers are tried, ours and torch's sum, and the better one counts.
    """
    region = buffer or AnonymousRegion(_RAM_BYTES)
    if buffer is None:
        fill(region.address, region.nbytes, 1)
    whole = _as_tensor(region)
    with using_threads(threads):
        ours = _fastest(lambda: read_all(region.address, region.nbytes), repeats)
        torchs = _fastest(whole.sum, repeats)
    return region.nbytes / min(ours, torchs)


def peak_rate(threads: int, repeats: int = 3) -> float:
    """Return the most operations a second that `threads` threads reach without touching memory."""
    with using_threads(threads):
        run_peak(_PEAK_ROUNDS // 100)
        return max(_operations(_PEAK_ROUNDS) for _ in range(repeats))


def disk_bandwidth(folder: Path) -> float:
    """Return the best rate, bytes a second, of reads in `folder`, over sizes and depths."""
    with probe_file(folder) as file:
        return max(file.read_rate(way) for way in file.ways())


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Run kernels and torch on `count` threads meanwhile."""
    before = threads(), torch.get_num_threads()
    set_threads(count)
    torch.set_num_threads(count)
    try:
        yield
    finally:
        set_threads(before[0])
        torch.set_num_threads(before[1])


class ProbeFile:
    """A nameless file of bytes that do not compress, opened twice: for direct I/O where that exists, and buffered."""

    def __init__(self, direct_fd: int | None, buffered_fd: int) -> None:
        self.direct_fd = direct_fd
        self.buffered_fd = buffered_fd

    @property
    def direct(self) -> bool:
        """Whether direct I/O is to be had. Without it, only the page cache could be measured; it is dropped first."""
        return self.direct_fd is not None

    def ways(self) -> list[Way]:
        """Return the ways that are worth trying."""
        kinds = (False, True) if self.direct else ()
        direct = [Way(size, depth, True, huge) for size in SIZES for depth in DEPTHS for huge in kinds]
        return direct + [Way(1 << 20, depth, False) for depth in DEPTHS]

    def read_rate(self, way: Way) -> float:
        """Return bytes a second of reading everything once; nothing of it is in the page cache before."""
        fd = self._fd(way)
        self.forget()
        return self._rate(way, lambda buffer, offset: os.preadv(fd, [buffer], offset))

    def write_rate(self, way: Way) -> float:
        """Return bytes a second of writing everything once, until it is on the disk."""
        fd = self._fd(way)
        return self._rate(way, lambda buffer, offset: os.pwritev(fd, [buffer], offset), fd)

    def forget(self) -> None:
        """Drop the file from the page cache."""
        os.fsync(self.buffered_fd)
        os.posix_fadvise(self.buffered_fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _fd(self, way: Way) -> int:
        return self.direct_fd if way.direct and self.direct_fd is not None else self.buffered_fd

    def _rate(self, way: Way, call: Callable[[memoryview, int], int], sync: int | None = None) -> float:
        buffers = [_noise(way.nbytes, way.huge) for _ in range(way.depth)]

        def share(worker: int) -> None:
            for offset in range(worker * way.nbytes, FILE_BYTES, way.depth * way.nbytes):
                call(buffers[worker], offset)

        with ThreadPoolExecutor(way.depth) as pool:
            began_s = time.monotonic()
            list(pool.map(share, range(way.depth)))
            if sync is not None:
                os.fdatasync(sync)
            return FILE_BYTES / (time.monotonic() - began_s)


@contextmanager
def probe_file(folder: Path) -> Iterator[ProbeFile]:
    """Lend a file of 256 MiB in `folder`, which is made where it does not exist."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    buffered = nameless_file(folder)
    direct = os.open(f"/proc/self/fd/{buffered}", os.O_RDWR)
    try:
        file = ProbeFile(direct if direct_works(direct) else None, buffered)
        file.write_rate(Way(4 << 20, 1, file.direct))
        yield file
    finally:
        os.close(direct)
        os.close(buffered)


def _noise(nbytes: int, huge: bool) -> memoryview:
    """Return a buffer of bytes that do not compress, in pages of the system of one size."""
    whole = mmap.mmap(-1, nbytes + HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    advise_huge(np.frombuffer(whole, np.uint8).ctypes.data, len(whole), huge)
    begin = -np.frombuffer(whole, np.uint8).ctypes.data % HUGE_BYTES
    buffer = memoryview(whole)[begin : begin + nbytes]
    noise = np.random.default_rng().bytes(min(nbytes, 1 << 20))
    buffer[:] = (noise * (nbytes // len(noise) + 1))[:nbytes]
    return buffer


def advise_huge(address: int, nbytes: int, huge: bool) -> None:
    """Ask the system to back a range that was not touched yet with huge pages, or with none. It may not comply."""
    begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    advice = mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE
    ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(address + nbytes - begin), advice)


def _as_tensor(region: AnonymousRegion) -> torch.Tensor:
    raw = (ctypes.c_uint8 * region.nbytes).from_address(region.address)
    return torch.from_numpy(np.ctypeslib.as_array(raw)).view(torch.float32)


def _operations(rounds: int) -> float:
    began_s = time.monotonic()
    return run_peak(rounds) / (time.monotonic() - began_s)


def _fastest(work: Callable[[], object], repeats: int) -> float:
    """Return the least seconds that `work` took."""
    seconds = []
    for _ in range(repeats):
        began_s = time.monotonic()
        work()
        seconds.append(time.monotonic() - began_s)
    return min(seconds)
