"""A CPU device whose copies fail now and then, each by an error that the kernel really reports."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from tokenvm.memory.backend import Copies, CopyEngine, Kind, Program
from tokenvm.memory.cpu import CpuDevice, NativeBatch, NativeRing

READ_FAULTS: Final = ("checksum", "short_read", "io_error", "gone")
WRITE_FAULTS: Final = ("no_space", "io_error", "gone", "dropped")
"""What may happen to a copy. A write that is dropped is reported as done, and its page found damaged later."""

_Rows = TypeVar("_Rows", Copies, Program)


class _Files:
    """Files that every copy fails on: /dev/zero gives other bytes, /dev/null none and forgets what it is given.

    A pipe has no places, and -1 is no file.
    """

    def __init__(self) -> None:
        zero, null = os.open("/dev/zero", os.O_RDONLY), os.open("/dev/null", os.O_RDWR)
        pipe, full = os.pipe(), os.open("/dev/full", os.O_WRONLY)
        self._open = [zero, null, full, *pipe]
        self.read = {"checksum": zero, "short_read": null, "io_error": pipe[0], "gone": -1}
        self.write = {"no_space": full, "io_error": pipe[1], "gone": -1, "dropped": null}

    def close(self) -> None:
        """Close them; idempotent."""
        while self._open:
            os.close(self._open.pop())


class _Chance:
    """Draws who fails, and how."""

    def __init__(self, rate: float, seed: int, reads: Sequence[str], writes: Sequence[str]) -> None:
        self.rate = rate
        self.counts: Counter[str] = Counter()
        self.files = _Files()
        self._random = np.random.default_rng(seed)
        self._known = {
            Kind.READ: [(self.files.read[fault], fault) for fault in reads],
            Kind.WRITE: [(self.files.write[fault], fault) for fault in writes],
        }
        self._spoils_memory = "checksum" in reads

    def spoil(self, copies: _Rows) -> _Rows:
        """Return the copies, some of which will fail."""
        drawn = self._random.random(len(copies)) < self.rate
        if not drawn.any():
            return copies
        fd, checksum = copies.fd.copy(), copies.checksum.copy()
        for row in np.flatnonzero(drawn).tolist():
            self._spoil_row(int(copies.kind[row]), row, fd, checksum)
        return replace(copies, fd=fd, checksum=checksum)

    def _spoil_row(self, kind: int, row: int, fd: NDArray[np.int32], checksum: NDArray[np.uint32]) -> None:
        if kind == Kind.COPY_IN and self._spoils_memory:
            checksum[row] ^= 1
            self.counts["checksum"] += 1
        known = self._known.get(Kind(kind), [])
        if known:
            fd[row], fault = known[int(self._random.integers(len(known)))]
            self.counts[fault] += 1


class FaultyCopies:
    """Batches, some of whose copies fail."""

    def __init__(self, inner: CopyEngine, chance: _Chance) -> None:
        self._inner, self._chance = inner, chance

    def submit(self, copies: Copies, urgent: bool) -> NativeBatch:
        """See `CopyEngine.submit`."""
        batch = self._inner.submit(self._chance.spoil(copies), urgent)
        assert isinstance(batch, NativeBatch)
        return batch


class FaultyRing(NativeRing):
    """A ring, some of whose reads fail."""

    chance: _Chance

    def submit(self, program: Program) -> int:
        """See `Ring.submit`."""
        return super().submit(self.chance.spoil(program))


class FaultyDevice(CpuDevice):
    """RAM as the device; of its copies below, the share `rate` fails, each attempt anew.

    Reads fail by one of `reads`, writes by one of `writes`, copies from the host by "checksum" if reads may. `rate` may
    be changed at any time. `injected`: how often each fault was.
    """

    def __init__(
        self,
        rate: float,
        seed: int = 0,
        reads: Sequence[str] = READ_FAULTS,
        writes: Sequence[str] = WRITE_FAULTS,
        threads: int = 4,
    ) -> None:
        super().__init__(threads)
        self._chance = _Chance(rate, seed, reads, writes)
        self._faulty = FaultyCopies(super().copies(), self._chance)

    @property
    def rate(self) -> float:
        """The share of copies that fail."""
        return self._chance.rate

    @rate.setter
    def rate(self, share: float) -> None:
        self._chance.rate = share

    @property
    def injected(self) -> dict[str, int]:
        """How often each fault was injected."""
        return dict(self._chance.counts)

    def copies(self) -> FaultyCopies:  # type: ignore[override]
        """See `DeviceBackend.copies`."""
        return self._faulty

    def ring(self, base: int, slots: int, stride: int) -> FaultyRing:
        """See `DeviceBackend.ring`."""
        ring = FaultyRing(self._pool, base, slots, stride)
        ring.chance = self._chance
        return ring

    def close(self) -> None:
        """See `DeviceBackend.close`."""
        super().close()
        self._chance.files.close()
