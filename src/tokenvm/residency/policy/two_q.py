"""2Q (Johnson and Shasha, VLDB 1994): what is used once passes through a short queue."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from tokenvm.residency.policy.base import Allowed, K
from tokenvm.residency.policy.two_queues import Queue, TwoQueues, trim

SHORT: Final = 4
"""One in so many units passes through the short queue; two as many are remembered after it."""


class TwoQ(TwoQueues[K]):
    """New units wait in a first-in-first-out queue; those that come back after it are kept, least recently used first.

    A use in the short queue brings a unit to its end and no further: else a head would leave it before the tails that
    came later, and with them.
    """

    name = "2q"

    def __init__(self) -> None:
        super().__init__()
        self._ghosts: Queue[K] = OrderedDict()

    def insert(self, *units: K) -> None:
        """See `Policy.insert`."""
        self._lent.difference_update(units)
        once, again = self._once, self._again
        for unit in units:
            if unit in again:
                again.move_to_end(unit)
            elif unit in self._ghosts:
                del self._ghosts[unit]
                again[unit] = 0
            else:
                once[unit] = 0
                once.move_to_end(unit)

    def touch(self, *units: K) -> None:
        """See `Policy.touch`."""
        for unit in units:
            queue = self._again if unit in self._again else self._once
            if unit in queue:
                queue.move_to_end(unit)

    def evict(self, *units: K) -> None:
        """See `Policy.evict`."""
        remembered = 2 * self._capacity // SHORT
        self._ghosts.update(dict.fromkeys((unit for unit in units if unit in self._once), 0))
        trim(self._ghosts, remembered)
        self.remove(*units)

    def victims(self, count: int, allowed: Allowed[K]) -> list[K]:
        """See `Policy.victims`."""
        passed = max(0, len(self._once) - self._capacity // SHORT)
        first = self._offered(self._once, min(count, passed), allowed)
        first += self._offered(self._again, count - len(first), allowed)
        if len(first) < count:
            known = set(first)
            first += self._offered(
                self._once, count - len(first), lambda unit: unit not in known and allowed(unit)
            )
        return first
