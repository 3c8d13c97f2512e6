"""A link of stated bandwidth between host memory and device: emulated, so that its arithmetic can be seen without one.

Bytes really move, and what waits for them waits as long as the link would have taken. What this cannot show: a real
link's copies cost the processor nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenvm.clock import Clock, RealClock
from tokenvm.memory.backend import (
    OUTWARD,
    Batch,
    Copies,
    CopyEngine,
    CopyResult,
    DeviceBackend,
    Kind,
    Program,
    Region,
    Ring,
)
from tokenvm.memory.codec import Codec
from tokenvm.metrics import union
from tokenvm.vocab import Answer


class Wire:
    """One direction of a link: copies cross it one after another, `bytes_per_s` bytes in each second."""

    def __init__(self, bytes_per_s: float) -> None:
        assert bytes_per_s > 0, f"Wire: bytes_per_s={bytes_per_s}"
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0
        self._busy: list[tuple[float, float]] = []

    def cross(self, nbytes: NDArray[np.uint64], now_s: float) -> NDArray[np.float64]:
        """Queue copies behind those that are crossing; return when each will have landed."""
        begin_s = max(self._free_s, now_s)
        ends = begin_s + np.cumsum(nbytes, dtype=np.float64) / self._bytes_per_s
        if len(ends) and ends[-1] > begin_s:
            self._busy.append((begin_s, float(ends[-1])))
            self._free_s = float(ends[-1])
        return ends

    def drop(self, now_s: float) -> None:
        """Give up what has not crossed yet."""
        self._free_s = min(self._free_s, now_s)
        self._busy = [(begin, min(end, now_s)) for begin, end in self._busy if begin < now_s]

    def drain_busy(self, now_s: float) -> NDArray[np.float64]:
        """Return when the wire was in use up to now, since last asked: (begin, end), [n, 2]."""
        past = [(begin, min(end, now_s)) for begin, end in self._busy if begin < now_s]
        self._busy = [(max(begin, now_s), end) for begin, end in self._busy if end > now_s]
        return np.array(past, np.float64).reshape(-1, 2)


class LinkedBatch:
    """A batch that has ended once the wire has carried it, too."""

    def __init__(self, inner: Batch, clock: Clock, landed_s: float) -> None:
        self._inner = inner
        self._clock = clock
        self._landed_s = landed_s

    def poll(self) -> Answer:
        """See `Batch.poll`."""
        return self._inner.poll() if self._clock.now_s() >= self._landed_s else Answer.IN_FLIGHT

    def wait(self) -> Answer:
        """See `Batch.wait`."""
        answer = self._inner.wait()
        self._clock.wait_until(self._landed_s)
        return answer

    def result(self) -> CopyResult:
        """See `Batch.result`."""
        self.wait()
        return self._inner.result()


class LinkedCopies:
    """Batches over a link: one wire inward, one outward."""

    def __init__(self, inner: CopyEngine, wires: tuple[Wire, Wire], clock: Clock) -> None:
        self._inner = inner
        self._wires = wires
        self._clock = clock

    def submit(self, copies: Copies, urgent: bool) -> LinkedBatch:
        """See `CopyEngine.submit`."""
        batch = self._inner.submit(copies, urgent)
        now_s = self._clock.now_s()
        landed_s = now_s
        for kind, wire in zip((Kind.COPY_IN, Kind.COPY_OUT), self._wires, strict=True):
            crossing = copies.nbytes[copies.kind == kind]
            if len(crossing):
                landed_s = max(landed_s, float(wire.cross(crossing, now_s)[-1]))
        return LinkedBatch(batch, self._clock, landed_s)


class LinkedRing:
    """A ring whose tickets cross the inward wire from the moment a slot is free for them."""

    def __init__(self, inner: Ring, wire: Wire, clock: Clock) -> None:
        self._inner = inner
        self._wire = wire
        self._clock = clock
        self._released = 0
        self._sizes = np.zeros(0, np.uint64)  # of every ticket not released
        self._landings = np.zeros(0, np.float64)  # of those that have a slot

    @property
    def slots(self) -> int:
        """See `Ring.slots`."""
        return self._inner.slots

    @property
    def stride(self) -> int:
        """See `Ring.stride`."""
        return self._inner.stride

    def submit(self, program: Program) -> int:
        """See `Ring.submit`."""
        first = self._inner.submit(program)
        if not len(self._sizes):
            self._released = first
        crossing = np.where(program.kind == Kind.COPY_IN, program.nbytes, np.uint64(0))
        self._sizes = np.concatenate([self._sizes, crossing])
        self._start()
        return first

    def wait(self, ticket_end: int) -> Answer:
        """See `Ring.wait`."""
        answer = self._inner.wait(ticket_end)
        last = min(ticket_end - self._released, len(self._landings)) - 1
        if last >= 0:
            self._clock.wait_until(float(self._landings[last]))
        return answer

    def addresses(self, begin: int, end: int) -> NDArray[np.uint64]:
        """See `Ring.addresses`."""
        return self._inner.addresses(begin, end)

    def release(self, ticket_end: int) -> None:
        """See `Ring.release`."""
        self._inner.release(ticket_end)
        count = max(0, ticket_end - self._released)
        self._sizes, self._landings = self._sizes[count:], self._landings[count:]
        self._released += count
        self._start()

    def failed(self, begin: int, end: int) -> NDArray[np.uint64]:
        """See `Ring.failed`."""
        return self._inner.failed(begin, end)

    def statuses(self, begin: int, end: int) -> NDArray[np.uint8]:
        """See `Ring.statuses`."""
        return self._inner.statuses(begin, end)

    def cancel(self) -> None:
        """See `Ring.cancel`."""
        self._inner.cancel()
        self._wire.drop(self._clock.now_s())
        self._sizes, self._landings = self._sizes[:0], self._landings[:0]

    def _start(self) -> None:
        begin, end = len(self._landings), min(len(self._sizes), self.slots)
        if end > begin:
            landings = self._wire.cross(self._sizes[begin:end], self._clock.now_s())
            self._landings = np.concatenate([self._landings, landings])


class LinkedDevice:
    """A device behind a link of `bytes_per_s` each way. Memory copies cross it; files are read as `inner` does it."""

    def __init__(self, inner: DeviceBackend, bytes_per_s: float, clock: Clock | None = None) -> None:
        self._inner = inner
        self._clock: Clock = clock or RealClock()
        self._wires = (Wire(bytes_per_s), Wire(bytes_per_s))
        self._copies = LinkedCopies(inner.copies(), self._wires, self._clock)

    @property
    def name(self) -> str:
        """See `DeviceBackend.name`."""
        return f"{self._inner.name}, link emulated"

    def allocate(self, nbytes: int) -> Region:
        """See `DeviceBackend.allocate`."""
        return self._inner.allocate(nbytes)

    def use(self, codec: Codec) -> None:
        """See `DeviceBackend.use`."""
        self._inner.use(codec)

    def copies(self) -> LinkedCopies:
        """See `DeviceBackend.copies`."""
        return self._copies

    def ring(self, base: int, slots: int, stride: int) -> LinkedRing:
        """See `DeviceBackend.ring`."""
        return LinkedRing(self._inner.ring(base, slots, stride), self._wires[0], self._clock)

    def fill(self, address: int, byte: int, nbytes: int) -> None:
        """See `DeviceBackend.fill`."""
        self._inner.fill(address, byte, nbytes)

    def reading(self, addresses: NDArray[np.uint64]) -> None:
        """See `DeviceBackend.reading`."""
        self._inner.reading(addresses)

    def writing(self, addresses: NDArray[np.uint64]) -> None:
        """See `DeviceBackend.writing`."""
        self._inner.writing(addresses)

    def moved_bytes(self) -> dict[str, int]:
        """See `DeviceBackend.moved_bytes`."""
        return self._inner.moved_bytes()

    def drain_intervals(self, outward: bool) -> NDArray[np.float64]:
        """See `DeviceBackend.drain_intervals`; the wire's time counts as copying."""
        wire = self._wires[OUTWARD if outward else 0]
        crossings = wire.drain_busy(self._clock.now_s())
        return union(np.concatenate([self._inner.drain_intervals(outward), crossings]))

    def close(self) -> None:
        """See `DeviceBackend.close`."""
        self._inner.close()
