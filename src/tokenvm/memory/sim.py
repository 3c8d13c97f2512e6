"""A device whose copies land only when somebody waits or polls, in a seeded order: races made on purpose.

It moves real bytes, in Python, without threads. What a native device cannot tell, it checks: that no two
copies meet where one of them writes, that a kernel reads nothing that has not landed, that nobody touches
what is pinned.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tokenvm.memory.backend import Copies, CopyResult, Status
from tokenvm.memory.codec import Codec
from tokenvm.memory.cpu import AnonymousRegion
from tokenvm.memory.sim_copy import MEMORY, Extent, SimCopy, SimFault, SimOutcome, rows_of_copies
from tokenvm.memory.sim_ring import SimRing
from tokenvm.memory.sim_world import SimCounters, SimWorld
from tokenvm.metrics import union
from tokenvm.vocab import Answer

__all__ = ["SimBatch", "SimCopies", "SimCopy", "SimDevice", "SimFault"]


class SimBatch:
    """A batch of simulated copies."""

    def __init__(self, world: SimWorld, copies: Copies) -> None:
        self._world = world
        n = len(copies)
        self._result = CopyResult(np.zeros(n, np.uint8), np.zeros(n, np.uint32), np.zeros(n, np.uint8))
        for index, copy in enumerate(rows_of_copies(copies)):
            world.start(copy, partial(self._landed, index))

    def _landed(self, index: int, outcome: SimOutcome) -> None:
        self._result.status[index] = outcome.status
        self._result.checksums[index] = outcome.checksum
        self._result.packed[index] = outcome.packed

    def _answer(self) -> Answer:
        status = self._result.status
        if bool((status == Status.QUEUED).any()):
            return Answer.IN_FLIGHT
        return Answer.HIT if bool((status == Status.LANDED).all()) else Answer.MISS

    def poll(self) -> Answer:
        """See `Batch.poll`; lands any number of copies first."""
        self._world.land_some()
        return self._answer()

    def wait(self) -> Answer:
        """See `Batch.wait`; lands copies of anybody until its own have."""
        self._world.land_until(lambda: self._answer() is not Answer.IN_FLIGHT)
        return self._answer()

    def result(self) -> CopyResult:
        """See `Batch.result`."""
        self.wait()
        return self._result


class SimCopies:
    """The copy engine of a simulated device."""

    def __init__(self, world: SimWorld) -> None:
        self._world = world

    def submit(self, copies: Copies, urgent: bool) -> SimBatch:
        """See `CopyEngine.submit`; raises SimFault if a copy meets another that is in flight."""
        if self._world.closed:
            raise RuntimeError("the simulated device is closed")
        return SimBatch(self._world, copies)


class SimDevice:
    """A backend for tests. The same seed and calls give the same order of landings."""

    name = "sim"

    def __init__(self, seed: int = 0) -> None:
        self._world = SimWorld(seed)
        self._copies = SimCopies(self._world)
        self._rings: list[SimRing] = []

    @property
    def counters(self) -> SimCounters:
        """What was done so far."""
        return self._world.counters

    @property
    def in_flight(self) -> int:
        """How many copies started and have not landed."""
        return len(self._world.in_flight)

    def fail_next(self, copies: int = 1) -> None:
        """Make the next copies to land fail instead."""
        self._world.fail_next += copies

    def fail_when(self, predicate: Callable[[SimCopy], bool]) -> None:
        """Make every copy fail for which `predicate` holds when it should land."""
        self._world.fail.append(predicate)

    @contextlib.contextmanager
    def pin(self, address: int, nbytes: int, exclusive: bool = False) -> Iterator[None]:
        """Forbid copies into these bytes while inside, and with `exclusive` copies out of them too."""
        entry = (Extent(MEMORY, address, address + nbytes), exclusive)
        self._world.pins.append(entry)
        try:
            yield
        finally:
            self._world.pins.remove(entry)

    def allocate(self, nbytes: int) -> AnonymousRegion:
        """See `DeviceBackend.allocate`."""
        return AnonymousRegion(nbytes)

    def use(self, codec: Codec) -> None:
        """See `DeviceBackend.use`."""
        self._world.codec = codec

    def copies(self) -> SimCopies:
        """See `DeviceBackend.copies`."""
        return self._copies

    def ring(self, base: int, slots: int, stride: int) -> SimRing:
        """See `DeviceBackend.ring`."""
        self._rings.append(SimRing(self._world, base, slots, stride))
        return self._rings[-1]

    def fill(self, address: int, byte: int, nbytes: int) -> None:
        """See `DeviceBackend.fill`."""
        ctypes.memset(address, byte, nbytes)

    def reading(self, addresses: NDArray[np.uint64]) -> None:
        """Raise SimFault if anything there has not landed, or lies in a ring slot that was released."""
        for address in np.asarray(addresses).ravel().tolist():
            byte = Extent(MEMORY, address, address + 1)
            if any(entry.copy.destination.meets(byte) for entry in self._world.in_flight):
                raise SimFault(f"a kernel reads {address:#x}, where a copy has not landed")
            if not all(ring.holds(address) for ring in self._rings):
                raise SimFault(f"a kernel reads {address:#x}, a ring slot that holds nothing")

    def writing(self, addresses: NDArray[np.uint64]) -> None:
        """Raise SimFault if a copy in flight uses anything there."""
        for address in np.asarray(addresses).ravel().tolist():
            byte = Extent(MEMORY, address, address + 1)
            for entry in self._world.in_flight:
                if entry.copy.destination.meets(byte) or entry.copy.source.meets(byte):
                    raise SimFault(f"a kernel writes {address:#x}, which {entry.copy} is still using")

    def moved_bytes(self) -> dict[str, int]:
        """See `DeviceBackend.moved_bytes`."""
        return dict(self._world.moved_bytes)

    def drain_intervals(self, outward: bool) -> NDArray[np.float64]:
        """See `DeviceBackend.drain_intervals`; in simulated seconds, of copies that have landed."""
        busy = self._world.busy[outward]
        intervals = union(np.array(busy, np.float64).reshape(-1, 2))
        busy.clear()
        return intervals

    def close(self) -> None:
        """See `DeviceBackend.close`."""
        self._world.closed = True
        while self._world.in_flight:
            self._world.in_flight.pop().landed(SimOutcome(Status.DROPPED))
            self._world.counters.dropped += 1
