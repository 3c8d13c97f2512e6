"""The CPU as a device: its memory is anonymous RAM, its copies are native threads."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenvm.errors import BuildError, StorageError
from tokenvm.kernels.paging import fill
from tokenvm.memory.backend import MOVED_NAMES, Copies, CopyResult, Kind, Program
from tokenvm.memory.codec import Bytes, Codec
from tokenvm.memory.layout import ALIGNMENT_BYTES, HUGE_BYTES
from tokenvm.vocab import Answer

NATIVE_CODECS = ("none", "bitpack")
_MOST_BEYOND_BYTES = HUGE_BYTES // 8
"""The last huge page of a region is asked for where no more of it than this lies beyond the end."""

_LANDINGS = (Answer.IN_FLIGHT, Answer.HIT, Answer.MISS, Answer.MISS)


def native() -> Any:
    """Return the native extension; BuildError where it was not built for this Python."""
    try:
        import tokenvm._native as extension
    except ImportError as error:
        raise BuildError(
            f"the native extension is missing ({error}): type `pip install --force-reinstall tokenvm`"
        ) from error
    return extension


def crc32c(address: int, nbytes: int) -> int:
    """CRC-32C (Castagnoli) of `nbytes` of memory at `address`."""
    return int(native().crc32c(address, nbytes))


class AnonymousRegion:
    """Private anonymous memory: zero-filled, committed when first touched, in pages or, from 2 MiB on, in huge pages.

    It begins at a huge page then. Direct reads into a huge page are one request to the disk, and need one page pinned.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = max(-(-nbytes // ALIGNMENT_BYTES), 1) * ALIGNMENT_BYTES
        huge = (self.nbytes + _MOST_BEYOND_BYTES) // HUGE_BYTES * HUGE_BYTES
        room = self.nbytes + (HUGE_BYTES + _MOST_BEYOND_BYTES if huge else 0)
        try:
            self._memory = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError) as error:
            raise StorageError(
                f"no room for {self.nbytes} bytes of memory ({error}): lower vram_limit or host_memory"
            ) from error
        start = np.frombuffer(self._memory, np.uint8).ctypes.data
        skipped = -start % HUGE_BYTES if huge else 0
        self.address = start + skipped
        if huge:
            with contextlib.suppress(OSError):  # a kernel without huge pages
                self._memory.madvise(mmap.MADV_HUGEPAGE, skipped, huge)

    @property
    def closed(self) -> bool:
        """Whether it was given back."""
        return self._memory.closed

    def close(self) -> None:
        """Unmap the memory; idempotent."""
        self._memory.close()


def bytes_at(address: int, nbytes: int) -> Bytes:
    """See memory as an array; whoever owns it keeps it alive."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def _on_addresses(function: Callable[[Bytes, Bytes], Answer]) -> Callable[[int, int, int, int], bool]:
    """Let native threads call a codec: (source, its bytes, target, its bytes) to whether it went well."""

    def call(source: int, source_bytes: int, target: int, target_bytes: int) -> bool:
        return function(bytes_at(source, source_bytes), bytes_at(target, target_bytes)) is Answer.HIT

    return call


class Pool:
    """The native threads and all memory they may be writing to: it goes only after they have stopped.

    All that can have copies in flight holds on to this, so that no order of collection unmaps a destination.
    """

    def __init__(self, threads: Any) -> None:
        self.threads = threads
        self._regions: list[AnonymousRegion] = []

    def __del__(self) -> None:
        self.threads.close()

    def allocate(self, nbytes: int) -> AnonymousRegion:
        """Map memory that stays until it is closed or the pool is gone."""
        self._regions = [region for region in self._regions if not region.closed]
        self._regions.append(AnonymousRegion(nbytes))
        return self._regions[-1]


class NativeBatch:
    """A batch of the native pool."""

    def __init__(self, pool: Pool, number: int) -> None:
        self._pool = pool
        self._number = number
        self._result: CopyResult | None = None

    def _answer(self) -> Answer:
        assert self._result is not None
        return Answer.HIT if bool((self._result.status == 1).all()) else Answer.MISS

    def poll(self) -> Answer:
        """See `Batch.poll`."""
        return self._answer() if self._result else _LANDINGS[self._pool.threads.poll(self._number)]

    def wait(self) -> Answer:
        """See `Batch.wait`."""
        return self._answer() if self._result else _LANDINGS[self._pool.threads.wait(self._number)]

    def result(self) -> CopyResult:
        """See `Batch.result`. The pool forgets only what is kept here, so an interrupt loses nothing."""
        if self._result is None:
            self._result = CopyResult(*self._pool.threads.take(self._number))
        self._pool.threads.forget(self._number)
        return self._result


class NativeCopies:
    """The copy engine of native threads."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def submit(self, copies: Copies, urgent: bool) -> NativeBatch:
        """See `CopyEngine.submit`. Not urgent: behind every read, until somebody waits for it."""
        c = copies
        submit = self._pool.threads.submit
        packing = c.packing and c.packing.columns
        number = submit(c.kind, c.check, c.fd, c.place, c.address, c.nbytes, c.checksum, urgent, packing)
        return NativeBatch(self._pool, number)


class NativeRing:
    """The staging ring fed by native threads."""

    def __init__(self, pool: Pool, base: int, slots: int, stride: int) -> None:
        self.base, self.slots, self.stride = base, slots, stride
        self._pool = pool
        self._ring = native().Ring(pool.threads, base, slots, stride)

    def submit(self, program: Program) -> int:
        """See `Ring.submit`."""
        p = program
        packing = p.packing and p.packing.columns
        return int(self._ring.submit(p.kind, p.check, p.fd, p.place, p.nbytes, p.checksum, packing))

    def wait(self, ticket_end: int) -> Answer:
        """See `Ring.wait`."""
        return _LANDINGS[self._ring.wait(ticket_end)]

    def addresses(self, begin: int, end: int) -> NDArray[np.uint64]:
        """See `Ring.addresses`."""
        return (self.base + np.arange(begin, end) % self.slots * self.stride).astype(np.uint64)

    def release(self, ticket_end: int) -> None:
        """See `Ring.release`."""
        self._ring.release(ticket_end)

    def failed(self, begin: int, end: int) -> NDArray[np.uint64]:
        """See `Ring.failed`."""
        return np.asarray(self._ring.failed(begin, end)[0], np.uint64)

    def statuses(self, begin: int, end: int) -> NDArray[np.uint8]:
        """See `Ring.statuses`."""
        return np.asarray(self._ring.failed(begin, end)[1], np.uint8)

    def cancel(self) -> None:
        """See `Ring.cancel`."""
        self._ring.cancel()

    def marks(self) -> tuple[int, int, int, int]:
        """Return (released, landed, started, submitted) at one moment; each is a number of tickets."""
        released, landed, started, submitted = self._ring.marks()
        return released, landed, started, submitted


class CpuDevice:
    """RAM as the device. `threads` is the most copies in flight; adjacent copies join up to `read_bytes`."""

    name = "cpu"

    def __init__(self, threads: int = 4, read_bytes: int = 1 << 20) -> None:
        assert threads > 0, f"CpuDevice: threads={threads}"
        self._pool = Pool(native().IoPool(threads, read_bytes))
        self._copies = NativeCopies(self._pool)

    def allocate(self, nbytes: int) -> AnonymousRegion:
        """See `DeviceBackend.allocate`."""
        return self._pool.allocate(nbytes)

    def use(self, codec: Codec) -> None:
        """See `DeviceBackend.use`. The native threads call a codec written in Python one at a time."""
        if codec.name in NATIVE_CODECS:
            return
        self._pool.threads.use_codec(_on_addresses(codec.encode), _on_addresses(codec.decode))
        weakref.finalize(self._pool, self._pool.threads.close)  # before the interpreter is gone

    def copies(self) -> NativeCopies:
        """See `DeviceBackend.copies`."""
        return self._copies

    def ring(self, base: int, slots: int, stride: int) -> NativeRing:
        """See `DeviceBackend.ring`."""
        assert slots > 0, f"CpuDevice.ring: slots={slots}"
        assert stride > 0, f"CpuDevice.ring: stride={stride}"
        return NativeRing(self._pool, base, slots, stride)

    def fill(self, address: int, byte: int, nbytes: int) -> None:
        """See `DeviceBackend.fill`."""
        fill(address, nbytes, byte)

    def reading(self, addresses: NDArray[np.uint64]) -> None:
        """Nothing to check: the native pool cannot tell."""

    def writing(self, addresses: NDArray[np.uint64]) -> None:
        """Nothing to check: the native pool cannot tell."""

    def moved_bytes(self) -> dict[str, int]:
        """See `DeviceBackend.moved_bytes`."""
        return {MOVED_NAMES[Kind(i)]: n for i, n in enumerate(self._pool.threads.moved_bytes())}

    def drain_intervals(self, outward: bool) -> NDArray[np.float64]:
        """See `DeviceBackend.drain_intervals`."""
        return np.array(self._pool.threads.drain_intervals(outward), np.float64).reshape(-1, 2)

    def close(self) -> None:
        """See `DeviceBackend.close`."""
        self._pool.threads.close()
