"""The staging ring of a simulated device."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tokenvm.memory.backend import Program, Status
from tokenvm.memory.sim_copy import SimCopy, SimOutcome, rows_of_program
from tokenvm.memory.sim_world import SimWorld
from tokenvm.vocab import Answer


class SimRing:
    """Copies start in order, as credits allow, and land in any order."""

    def __init__(self, world: SimWorld, base: int, slots: int, stride: int) -> None:
        self.base, self.slots, self.stride = base, slots, stride
        self._world = world
        self._queue: list[SimCopy] = []
        self._ended: set[int] = set()
        self._failed: dict[int, Status] = {}
        self._released = self._landed = self._started = self._submitted = 0

    def submit(self, program: Program) -> int:
        """See `Ring.submit`."""
        if self._world.closed:
            raise RuntimeError("the simulated device is closed")
        rows = list(rows_of_program(program))
        if any(copy.kind & 1 or copy.nbytes > self.stride for copy in rows):
            raise ValueError("a ring takes reads that fit its slots")
        first = self._submitted
        for copy in rows:
            self._queue.append(
                replace(copy, address=int(self.addresses(self._submitted, self._submitted + 1)[0]))
            )
            self._submitted += 1
        self._start()
        return first

    def wait(self, ticket_end: int) -> Answer:
        """See `Ring.wait`."""
        if ticket_end > min(self._submitted, self._released + self.slots):
            raise IndexError(
                "wait for tickets that were never submitted, or that need slots not yet released"
            )
        if self._world.closed and self._landed < ticket_end:
            return Answer.MISS
        self._world.land_until(lambda: self._landed >= ticket_end)
        return Answer.MISS if len(self.failed(self._released, ticket_end)) else Answer.HIT

    def addresses(self, begin: int, end: int) -> NDArray[np.uint64]:
        """See `Ring.addresses`."""
        return (self.base + np.arange(begin, end) % self.slots * self.stride).astype(np.uint64)

    def release(self, ticket_end: int) -> None:
        """See `Ring.release`; poisons the slots."""
        if ticket_end > self._landed:
            raise IndexError("release of tickets that have not landed: wait first")
        for address in self.addresses(self._released, ticket_end).tolist():
            ctypes.memset(address, 0xFF, self.stride)
        self._released = max(self._released, ticket_end)
        self._start()

    def failed(self, begin: int, end: int) -> NDArray[np.uint64]:
        """See `Ring.failed`."""
        return np.array(sorted(t for t in self._failed if begin <= t < end), np.uint64)

    def statuses(self, begin: int, end: int) -> NDArray[np.uint8]:
        """See `Ring.statuses`."""
        return np.array([self._failed[t] for t in self.failed(begin, end).tolist()], np.uint8)

    def cancel(self) -> None:
        """See `Ring.cancel`."""
        self._world.counters.dropped += len(self._queue)
        self._queue.clear()
        if not self._world.closed:
            self._world.land_until(lambda: self._landed == self._started)
        self._released = self._landed = self._started = self._submitted
        self._ended.clear()
        self._failed.clear()

    def holds(self, address: int) -> bool:
        """Say whether a kernel may read there: outside the ring, or in a landed slot not yet released."""
        slot = (address - self.base) // self.stride
        if not 0 <= slot < self.slots:
            return True
        return any(t % self.slots == slot for t in range(self._released, self._landed))

    def _start(self) -> None:
        while self._queue and self._started < self._released + self.slots:
            self._world.start(self._queue.pop(0), partial(self._end, self._started))
            self._started += 1

    def _end(self, ticket: int, outcome: SimOutcome) -> None:
        self._ended.add(ticket)
        if outcome.status is not Status.LANDED:
            self._failed[ticket] = outcome.status
        while self._landed in self._ended:
            self._ended.remove(self._landed)
            self._landed += 1
