"""What policies have in common that tell units used once from units used again."""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice

from tokenvm.residency.policy.base import Allowed, K, Plain

Queue = OrderedDict[K, int]
"""Units, the first to go first, each with a count whose meaning is the policy's."""


class TwoQueues(Plain[K]):
    """`_once` and `_again` hold the units. One that is lent keeps its place and is not offered."""

    def __init__(self) -> None:
        self._once: Queue[K] = OrderedDict()
        self._again: Queue[K] = OrderedDict()
        self._lent: set[K] = set()
        self._room = 0

    def resize(self, units: int) -> None:
        """See `Policy.resize`."""
        self._room = units

    def lend(self, *units: K) -> None:
        """See `Policy.lend`."""
        self._lent.update(unit for unit in units if unit in self._once or unit in self._again)

    def remove(self, *units: K) -> None:
        """See `Policy.remove`."""
        self._lent.difference_update(units)
        for unit in units:
            self._once.pop(unit, None)
            self._again.pop(unit, None)

    @property
    def _capacity(self) -> int:
        return self._room or len(self._once) + len(self._again)

    def _offered(self, queue: Queue[K], count: int, allowed: Allowed[K]) -> list[K]:
        """Return the first of a queue that may go."""
        lent = self._lent
        if not lent:
            return list(islice(filter(allowed, queue), count))
        return list(islice((unit for unit in queue if unit not in lent and allowed(unit)), count))


def trim(ghosts: Queue[K], most: int) -> None:
    """Forget the oldest until at most so many are left."""
    while len(ghosts) > max(0, most):
        ghosts.popitem(last=False)
