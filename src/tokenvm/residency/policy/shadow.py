"""A cache of names alone: what would have been found under another policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic

from tokenvm.residency.policy.base import K, Policy


def anyone(unit: object) -> bool:
    """Allow every unit."""
    return True


class Shadow(Generic[K]):
    """As many units as there is room for, under a policy of its own: all that is asked for comes, whoever has it."""

    def __init__(self, policy: Policy[K]) -> None:
        self.policy = policy
        self._here: set[K] = set()
        self._room = 0

    def __contains__(self, unit: K) -> bool:
        return unit in self._here

    def __len__(self) -> int:
        return len(self._here)

    def resize(self, units: int) -> list[K]:
        """Hear how many units there is room for; return those that had to go."""
        self._room = units
        self.policy.resize(units)
        return self._shrink()

    def leading(self, units: Sequence[K]) -> int:
        """Return how many leading ones of these are here."""
        here = self._here
        for found, unit in enumerate(units):
            if unit not in here:
                return found
        return len(units)

    def ask(self, units: Sequence[K]) -> list[K]:
        """A request for these units, in position order: all of them are here now. Return those that had to go."""
        self.policy.visit(units)
        return self._take(units[::-1])

    def extend(self, unit: K, after: K) -> list[K]:
        """See `Policy.extend`; return those that had to go."""
        self.policy.extend(unit, after)
        return self._take((unit,))

    def remove(self, *units: K) -> None:
        """Units died: nobody could have kept them."""
        self.policy.remove(*units)
        self._here.difference_update(units)

    def _take(self, units: Sequence[K]) -> list[K]:
        """Units are used, tails first."""
        self.policy.insert(*units)
        self._here.update(units)
        return self._shrink()

    def _shrink(self) -> list[K]:
        gone: list[K] = []
        while self._room and (beyond := len(self._here) - self._room) > 0:
            chosen = self.policy.victims(beyond, anyone)
            self.policy.evict(*chosen)
            self._here.difference_update(chosen)
            gone += chosen
        return gone
