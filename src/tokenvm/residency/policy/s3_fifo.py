"""S3-FIFO (Yang and others, SOSP 2023): three first-in-first-out queues, one of them of ghosts."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from tokenvm.residency.policy.base import Allowed, K
from tokenvm.residency.policy.two_queues import Queue, TwoQueues, trim

SMALL: Final = 10
"""One in so many units is in the small queue."""
PROMOTED: Final = 2
"""Uses in the small queue that bring a unit into the main one."""
MOST: Final = 3
"""A unit that was used so often in the main queue passes its end as often, and no more."""


class S3Fifo(TwoQueues[K]):
    """`_once` is the small queue, `_again` the main one; each unit with the uses since it came into its queue."""

    name = "s3fifo"

    def __init__(self) -> None:
        super().__init__()
        self._ghosts: Queue[K] = OrderedDict()

    def insert(self, *units: K) -> None:
        """See `Policy.insert`."""
        self._lent.difference_update(units)
        once, again, ghosts = self._once, self._again, self._ghosts
        for unit in units:
            if unit in again:
                again[unit] = min(MOST, again[unit] + 1)
            elif unit in once:
                once[unit] += 1
            elif unit in ghosts:
                del ghosts[unit]
                again[unit] = 0
            else:
                once[unit] = 0

    def touch(self, *units: K) -> None:
        """See `Policy.touch`."""
        for unit in units:
            queue = self._once if unit in self._once else self._again
            if unit in queue:
                queue[unit] = min(MOST, queue[unit] + 1)

    def evict(self, *units: K) -> None:
        """See `Policy.evict`."""
        remembered = self._capacity
        self._ghosts.update(dict.fromkeys((unit for unit in units if unit in self._once), 0))
        trim(self._ghosts, remembered)
        self.remove(*units)

    def victims(self, count: int, allowed: Allowed[K]) -> list[K]:
        """See `Policy.victims`. What has earned it moves on; what is offered stays at the front of its queue."""
        self._advance()
        passed = max(0, len(self._once) - self._capacity // SMALL)
        first = self._offered(
            self._once, min(count, passed), lambda unit: self._once[unit] < PROMOTED and allowed(unit)
        )
        first += self._offered(
            self._again, count - len(first), lambda unit: not self._again[unit] and allowed(unit)
        )
        if len(first) < count:
            known = set(first)
            rest = sorted((unit for unit in self._again if unit not in known), key=self._again.__getitem__)
            rest += [unit for unit in self._once if unit not in known]
            first += [unit for unit in rest if unit not in self._lent and allowed(unit)][: count - len(first)]
        return first

    def _advance(self) -> None:
        """Let units that were used pass the ends of both queues."""
        if len(self._once) > self._capacity // SMALL:
            while self._once and self._once[next(iter(self._once))] >= PROMOTED:
                unit, _ = self._once.popitem(last=False)
                self._again[unit] = 0
        while self._again and (uses := self._again[next(iter(self._again))]):
            unit, _ = self._again.popitem(last=False)
            self._again[unit] = uses - 1
