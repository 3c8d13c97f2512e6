"""The physical floor of this machine, measured in the same run as what is held against it."""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from tokenvm.memory.disk import nameless_file

_RAM_BYTES = 256 << 20
_FILE_BYTES = 256 << 20
_SIZES = (256 << 10, 1 << 20, 4 << 20)
_DEPTHS = (1, 2, 4, 8)


def ram_bandwidth(threads: int, repeats: int = 5) -> float:
    """Return the best rate, bytes a second, at which `threads` threads sum a buffer far larger than any cache."""
    buffer = torch.ones(_RAM_BYTES // 4)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return max(_RAM_BYTES / _seconds(lambda: buffer.sum()) for _ in range(repeats))
    finally:
        torch.set_num_threads(before)


def disk_bandwidth(folder: Path) -> float:
    """Return the best rate, bytes a second, of direct reads in `folder`, over sizes and depths.

    Where direct I/O is not to be had the rate is that of the page cache, which no disk tier can promise.
    """
    with _file(folder) as fd:
        return max(_read_rate(fd, size, depth) for size in _SIZES for depth in _DEPTHS)


@contextmanager
def _file(folder: Path) -> Iterator[int]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = nameless_file(folder)
    try:
        chunk = mmap.mmap(-1, 4 << 20)
        chunk.write(os.urandom(1 << 20) * 4)
        _set_direct(fd)
        for offset in range(0, _FILE_BYTES, len(chunk)):
            os.pwrite(fd, chunk, offset)
        yield fd
    finally:
        os.close(fd)


def _set_direct(fd: int) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    except OSError:
        return


def _read_rate(fd: int, size: int, depth: int) -> float:
    buffers = [mmap.mmap(-1, size) for _ in range(depth)]

    def read_share(worker: int) -> None:
        for offset in range(worker * size, _FILE_BYTES, depth * size):
            os.preadv(fd, [buffers[worker]], offset)

    with ThreadPoolExecutor(depth) as pool:
        return _FILE_BYTES / _seconds(lambda: list(pool.map(read_share, range(depth))))


def _seconds(work: Callable[[], object]) -> float:
    began_s = time.monotonic()
    work()
    return time.monotonic() - began_s
