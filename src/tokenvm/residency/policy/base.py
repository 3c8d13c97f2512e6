"""What every eviction policy offers. A policy knows ids and the order of events, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tokenvm.vocab import UnitId

Allowed = Callable[[UnitId], bool]


class Policy(Protocol):
    """Ranks units by how little they will be missed."""

    @property
    def name(self) -> str:
        """The word that chooses it in a configuration."""
        ...

    def insert(self, unit: UnitId) -> None:
        """A unit came to the device; inserting one that is known counts as a touch."""
        ...

    def touch(self, unit: UnitId) -> None:
        """A unit was used; one that is not known is ignored."""
        ...

    def remove(self, unit: UnitId) -> None:
        """A unit left or died; one that is not known is ignored."""
        ...

    def victims(self, count: int, allowed: Allowed) -> list[UnitId]:
        """Return at most `count` allowed units, the first to go first. Changes nothing."""
        ...


class NoPolicy:
    """Never has a victim: for a device that holds everything."""

    name = "none"

    def insert(self, unit: UnitId) -> None:
        """Ignore it."""

    def touch(self, unit: UnitId) -> None:
        """Ignore it."""

    def remove(self, unit: UnitId) -> None:
        """Ignore it."""

    def victims(self, count: int, allowed: Allowed) -> list[UnitId]:
        """Return none."""
        return []
