"""Least recently used."""

from __future__ import annotations

from itertools import islice

from tokenvm.residency.policy.base import Allowed
from tokenvm.vocab import UnitId


class Lru:
    """Gives up first what was used longest ago."""

    name = "lru"

    def __init__(self) -> None:
        self._order: dict[UnitId, None] = {}

    def insert(self, unit: UnitId) -> None:
        """See `Policy.insert`."""
        self._order.pop(unit, None)
        self._order[unit] = None

    def touch(self, unit: UnitId) -> None:
        """See `Policy.touch`."""
        if unit in self._order:
            self.insert(unit)

    def remove(self, unit: UnitId) -> None:
        """See `Policy.remove`."""
        self._order.pop(unit, None)

    def victims(self, count: int, allowed: Allowed) -> list[UnitId]:
        """See `Policy.victims`."""
        return list(islice((unit for unit in self._order if allowed(unit)), count))
