"""Everything in flight on one simulated device, and the checks that no two users of a byte meet."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tokenvm.memory.backend import MOVED_NAMES, Status
from tokenvm.memory.codec import Codec, Identity
from tokenvm.memory.sim_copy import Extent, SimCopy, SimFault, SimOutcome

Landed = Callable[[SimOutcome], None]
STEP_S = 1e-3
"""Simulated seconds that each landing takes."""


@dataclass(slots=True)
class SimCounters:
    """What the device did."""

    started: int = 0
    landed: int = 0
    failed: int = 0
    dropped: int = 0
    out_of_order: int = 0


@dataclass(frozen=True, slots=True)
class InFlight:
    """A copy that started and has not landed."""

    copy: SimCopy
    landed: Landed
    since_s: float


class SimWorld:
    """Everything in flight on one simulated device."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.counters = SimCounters()
        self.codec: Codec = Identity()
        self.moved_bytes = dict.fromkeys(MOVED_NAMES.values(), 0)
        self.in_flight: list[InFlight] = []
        self.pins: list[tuple[Extent, bool]] = []
        self.fail: list[Callable[[SimCopy], bool]] = []
        self.fail_next = 0
        self.closed = False
        self.now_s = 0.0
        self.busy: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])

    def start(self, copy: SimCopy, landed: Landed) -> None:
        """Begin a copy: SimFault if it meets another copy or a pin; its destination is poisoned at once."""
        for other in self.in_flight:
            _check_apart(copy, other.copy)
        for extent, exclusive in self.pins:
            if copy.destination.meets(extent) or (exclusive and copy.source.meets(extent)):
                raise SimFault(f"{copy} touches pinned bytes {extent}")
        copy.poison()
        self.counters.started += 1
        self.in_flight.append(InFlight(copy, landed, self.now_s))

    def land_one(self) -> None:
        """Land one copy, any of those in flight."""
        index = self.random.randrange(len(self.in_flight))
        self.counters.out_of_order += index > 0
        entry = self.in_flight.pop(index)
        failed = self._fails(entry.copy)
        outcome = SimOutcome(Status.FAILED) if failed else entry.copy.carry_out(self.codec)
        self.now_s += STEP_S
        self.busy[entry.copy.kind & 1].append((entry.since_s, self.now_s))
        if outcome.status is Status.LANDED:
            self.counters.landed += 1
            moved = entry.copy.far_bytes if outcome.packed else entry.copy.nbytes
            self.moved_bytes[MOVED_NAMES[entry.copy.kind]] += moved
        else:
            self.counters.failed += 1
            entry.copy.poison()
        entry.landed(outcome)

    def land_some(self) -> None:
        """Land any number of copies, perhaps none."""
        for _ in range(self.random.randint(0, len(self.in_flight))):
            self.land_one()

    def land_until(self, done: Callable[[], bool]) -> None:
        """Land copies until `done`; SimFault if nothing is left that could."""
        while not done():
            if not self.in_flight:
                raise SimFault("waiting for copies that can never start")
            self.land_one()

    def _fails(self, copy: SimCopy) -> bool:
        if self.fail_next > 0:
            self.fail_next -= 1
            return True
        return any(predicate(copy) for predicate in self.fail)


def _check_apart(copy: SimCopy, other: SimCopy) -> None:
    if copy.destination.meets(other.destination) or copy.destination.meets(other.source):
        raise SimFault(f"{copy} writes what {other} is still using")
    if copy.source.meets(other.destination):
        raise SimFault(f"{copy} reads what {other} is still writing")
