"""For a tier whose units are used one by one, whoever asked for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic

from tokenvm.residency.policy.base import Allowed, K, Policy


class OneByOne(Generic[K]):
    """Tells a policy that waits to hear of requests that each unit was asked for by itself."""

    def __init__(self, policy: Policy[K]) -> None:
        self._policy = policy
        self._here: set[K] = set()
        self.name = policy.name

    @property
    def ruling(self) -> str:
        """See `Policy.ruling`."""
        return self._policy.ruling

    def resize(self, units: int) -> None:
        """See `Policy.resize`."""
        self._policy.resize(units)

    def visit(self, units: Sequence[K]) -> None:
        """See `Policy.visit`: ignored."""

    def extend(self, unit: K, after: K) -> None:
        """See `Policy.extend`: ignored."""

    def insert(self, *units: K) -> None:
        """See `Policy.insert`."""
        self._here.update(units)
        for unit in units:
            self._policy.visit((unit,))
            self._policy.insert(unit)

    def touch(self, *units: K) -> None:
        """See `Policy.touch`."""
        self.insert(*(unit for unit in units if unit in self._here))

    def lend(self, *units: K) -> None:
        """See `Policy.lend`."""
        self._here.difference_update(units)
        self._policy.lend(*units)

    def evict(self, *units: K) -> None:
        """See `Policy.evict`."""
        self._here.difference_update(units)
        self._policy.evict(*units)

    def remove(self, *units: K) -> None:
        """See `Policy.remove`."""
        self._here.difference_update(units)
        self._policy.remove(*units)

    def victims(self, count: int, allowed: Allowed[K]) -> list[K]:
        """See `Policy.victims`."""
        return self._policy.victims(count, allowed)
