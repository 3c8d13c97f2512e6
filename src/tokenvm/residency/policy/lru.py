"""Least recently used."""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice

from tokenvm.residency.policy.base import Allowed, K, Plain


class Lru(Plain[K]):
    """Gives up first what was used longest ago."""

    name = "lru"

    def __init__(self) -> None:
        self._order: OrderedDict[K, None] = OrderedDict()

    def insert(self, *units: K) -> None:
        """See `Policy.insert`."""
        order = self._order
        for unit in units:
            if unit in order:
                order.move_to_end(unit)
            else:
                order[unit] = None

    def touch(self, *units: K) -> None:
        """See `Policy.touch`."""
        for unit in units:
            if unit in self._order:
                self._order.move_to_end(unit)

    def lend(self, *units: K) -> None:
        """See `Policy.lend`."""
        self.remove(*units)

    def evict(self, *units: K) -> None:
        """See `Policy.evict`."""
        self.remove(*units)

    def remove(self, *units: K) -> None:
        """See `Policy.remove`."""
        for unit in units:
            self._order.pop(unit, None)

    def victims(self, count: int, allowed: Allowed[K]) -> list[K]:
        """See `Policy.victims`."""
        return list(islice(filter(allowed, self._order), count))
