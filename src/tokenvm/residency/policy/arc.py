"""ARC, the adaptive replacement cache (Megiddo and Modha, FAST 2003)."""

from __future__ import annotations

from collections import OrderedDict

from tokenvm.residency.policy.base import Allowed, K
from tokenvm.residency.policy.two_queues import Queue, TwoQueues, trim


class Arc(TwoQueues[K]):
    """Units used once and units used again, each least recently used first, and how many of either to keep.

    `_target` units used once are kept: more after each return of one that left them, fewer after each return of one
    that left the others.
    """

    name = "arc"

    def __init__(self) -> None:
        super().__init__()
        self._ghosts_once: Queue[K] = OrderedDict()
        self._ghosts_again: Queue[K] = OrderedDict()
        self._target = 0.0

    def insert(self, *units: K) -> None:
        """See `Policy.insert`."""
        self._lent.difference_update(units)
        once, again = self._once, self._again
        for unit in units:
            if unit in again:
                again.move_to_end(unit)
            elif unit in once:
                del once[unit]
                again[unit] = 0
            elif self._returned(unit):
                again[unit] = 0
            else:
                once[unit] = 0

    def _returned(self, unit: K) -> bool:
        """Whether the unit had been here; the target follows."""
        once, again = self._ghosts_once, self._ghosts_again
        if unit in once:
            more = max(1.0, len(again) / len(once))
            self._target = min(float(self._capacity), self._target + more)
            del once[unit]
            return True
        if unit in again:
            fewer = max(1.0, len(once) / len(again))
            self._target = max(0.0, self._target - fewer)
            del again[unit]
            return True
        return False

    def touch(self, *units: K) -> None:
        """See `Policy.touch`."""
        for unit in units:
            if unit in self._once or unit in self._again:
                self._once.pop(unit, None)
                self._again[unit] = 0
                self._again.move_to_end(unit)

    def evict(self, *units: K) -> None:
        """See `Policy.evict`."""
        capacity, once, again = self._capacity, self._once, self._again
        self._lent.difference_update(units)
        for unit in units:
            if unit in once:
                del once[unit]
                self._ghosts_once[unit] = 0
            elif unit in again:
                del again[unit]
                self._ghosts_again[unit] = 0
        trim(self._ghosts_once, capacity - len(self._once))
        here = len(self._once) + len(self._again)
        trim(self._ghosts_again, 2 * capacity - here - len(self._ghosts_once))

    def victims(self, count: int, allowed: Allowed[K]) -> list[K]:
        """See `Policy.victims`."""
        beyond = max(0, len(self._once) - int(self._target))
        first = self._offered(self._once, min(count, beyond), allowed)
        again = self._offered(self._again, count - len(first), allowed)
        first += again
        if len(first) < count:
            known = set(first)
            first += self._offered(
                self._once, count - len(first), lambda unit: unit not in known and allowed(unit)
            )
        return first
