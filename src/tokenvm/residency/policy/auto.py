"""Several policies on trial, each over a shadow cache; the one that finds most decides."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, Generic

from tokenvm.residency.policy.base import Allowed, K, Policy
from tokenvm.residency.policy.shadow import Shadow

MEMORY: Final = 8
"""What was found counts less by a factor e after so many times as many units were asked for as there is room for."""
MARGIN: Final = 0.02
"""Another policy rules once it finds this share more."""


class Auto(Generic[K]):
    """Gives up what the policy that finds most would not hold, then what that policy gives up first.

    `candidates` are made fresh; the first of them rules at first and where nothing tells them apart. What is found is
    leading units of requests, and every unit counts: of a sample nobody can tell how long a leading run is.
    """

    name = "auto"

    def __init__(self, candidates: Sequence[Callable[[], Policy[K]]]) -> None:
        self._shadows = {policy.name: Shadow(policy) for policy in (make() for make in candidates)}
        self._found = dict.fromkeys(self._shadows, 0.0)
        self._here: set[K] = set()
        self._lent: set[K] = set()
        self._missed: OrderedDict[K, None] = OrderedDict()  # what is here and not in the shadow of who rules
        self._room = 0
        self.ruling = next(iter(self._shadows))

    def resize(self, units: int) -> None:
        """See `Policy.resize`."""
        self._room = units
        for name, shadow in self._shadows.items():
            self._hear(name, (), shadow.resize(units))

    def visit(self, units: Sequence[K]) -> None:
        """See `Policy.visit`."""
        fade = max(0.0, 1.0 - len(units) / (MEMORY * self._room)) if self._room else 1.0
        for name, shadow in self._shadows.items():
            self._found[name] = self._found[name] * fade + shadow.leading(units)
            self._hear(name, units, shadow.ask(units))
        best = max(self._found, key=self._found.__getitem__)
        if self._found[best] > self._found[self.ruling] * (1 + MARGIN):
            self.ruling = best
            self._missed = OrderedDict.fromkeys(
                unit for unit in self._here if unit not in self._shadows[best]
            )

    def extend(self, unit: K, after: K) -> None:
        """See `Policy.extend`."""
        for name, shadow in self._shadows.items():
            self._hear(name, (unit,), shadow.extend(unit, after))

    def insert(self, *units: K) -> None:
        """See `Policy.insert`."""
        self._lent.difference_update(units)
        ruler = self._shadows[self.ruling]
        self._missed.update(dict.fromkeys(unit for unit in units if unit not in ruler))
        self._here.update(units)

    def touch(self, *units: K) -> None:
        """See `Policy.touch`: visits say it all."""

    def lend(self, *units: K) -> None:
        """See `Policy.lend`."""
        self._lent.update(self._here.intersection(units))

    def evict(self, *units: K) -> None:
        """See `Policy.evict`."""
        self._here.difference_update(units)
        self._lent.difference_update(units)
        for unit in units:
            self._missed.pop(unit, None)

    def remove(self, *units: K) -> None:
        """See `Policy.remove`."""
        self.evict(*units)
        for shadow in self._shadows.values():
            shadow.remove(*units)

    def victims(self, count: int, allowed: Allowed[K]) -> list[K]:
        """See `Policy.victims`."""
        here, lent = self._here, self._lent
        first = list(islice((unit for unit in self._missed if unit not in lent and allowed(unit)), count))
        if len(first) == count:
            return first
        chosen = lent.union(first)
        return first + self._shadows[self.ruling].policy.victims(
            count - len(first), lambda unit: unit in here and unit not in chosen and allowed(unit)
        )

    def _hear(self, name: str, came: Sequence[K], gone: Sequence[K]) -> None:
        """The shadow of a policy has changed."""
        if name != self.ruling:
            return
        if self._missed:
            for unit in came:
                self._missed.pop(unit, None)
        self._missed.update(dict.fromkeys(self._here.intersection(gone)))
