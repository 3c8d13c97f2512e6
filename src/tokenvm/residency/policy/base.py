"""What every eviction policy offers. A policy knows ids and the order of events, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)
"""How units are named: a `UnitId` for copies in one tier, a `PageKey` where a page may die and be computed again."""

Allowed = Callable[[K], bool]


class Policy(Protocol[K]):
    """Ranks units by how little they will be missed. Events name units in the order in which they happen.

    A unit that was evicted may be remembered by its name, in bounded memory, and is judged better when it comes back.
    """

    @property
    def name(self) -> str:
        """The word that chooses it in a configuration."""
        ...

    @property
    def ruling(self) -> str:
        """The name of the policy that decides now: its own, unless it lets others duel."""
        ...

    def resize(self, units: int) -> None:
        """Hear how many units there is room for from now on; until then, as many as there ever were."""
        ...

    def visit(self, units: Sequence[K]) -> None:
        """A request asks for these units, in position order; not all of them need be there."""
        ...

    def extend(self, unit: K, after: K) -> None:
        """A unit that nobody asked for, an answer's, came to be behind another one."""
        ...

    def insert(self, *units: K) -> None:
        """Units came, or came back from being lent; inserting one that is known counts as a touch."""
        ...

    def touch(self, *units: K) -> None:
        """Units were used; one that is not known is ignored."""
        ...

    def lend(self, *units: K) -> None:
        """Units are in use for some time: none is offered until it is inserted again. One not known is ignored."""
        ...

    def evict(self, *units: K) -> None:
        """Units left because their room was needed; one that is not known is ignored."""
        ...

    def remove(self, *units: K) -> None:
        """Units left or died for another reason; one that is not known is ignored."""
        ...

    def victims(self, count: int, allowed: Allowed[K]) -> list[K]:
        """Return at most `count` allowed units, the first to go first. Asked again at once, it says the same."""
        ...


class Plain(Generic[K]):
    """What policies do that rank single units: they hear nothing of requests."""

    name = ""

    @property
    def ruling(self) -> str:
        """See `Policy.ruling`."""
        return self.name

    def resize(self, units: int) -> None:
        """See `Policy.resize`."""

    def visit(self, units: Sequence[K]) -> None:
        """See `Policy.visit`."""

    def extend(self, unit: K, after: K) -> None:
        """See `Policy.extend`."""


class NoPolicy(Plain[K]):
    """Never has a victim: for a device that holds everything."""

    name = "none"

    def insert(self, *units: K) -> None:
        """Ignore them."""

    def touch(self, *units: K) -> None:
        """Ignore them."""

    def lend(self, *units: K) -> None:
        """Ignore them."""

    def evict(self, *units: K) -> None:
        """Ignore them."""

    def remove(self, *units: K) -> None:
        """Ignore them."""

    def victims(self, count: int, allowed: Allowed[K]) -> list[K]:
        """Return none."""
        return []
