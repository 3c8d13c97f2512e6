"""The register of a tier: which page lies in which slot, written down for the next process or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tokenvm.vocab import PageKey, SlotId


@dataclass(frozen=True, slots=True)
class KeptPage:
    """A page that a process before this one left: where it lies, its name, that of the page before it (b"" for none).

    `written_s` is Unix time.
    """

    slot: SlotId
    key: PageKey
    parent: PageKey
    written_s: int


class Register(Protocol):
    """What outlives the process. One owner; nothing here waits for the disk but `flush` and `close`."""

    @property
    def keeps(self) -> bool:
        """Whether anything that is remembered here is there for the next process."""
        ...

    @property
    def writable(self) -> bool:
        """Whether pages may be written to the tier at all."""
        ...

    @property
    def found(self) -> Sequence[KeptPage]:
        """The pages that were there at the start: each after the page before it."""
        ...

    @property
    def idle_order(self) -> Sequence[int]:
        """Places in `found`, in the order in which those pages should be given up."""
        ...

    def remember(self, slot: SlotId, key: PageKey, parent: PageKey) -> float:
        """Hear that the slot holds a whole page of this name, checksums and all, as its store has them.

        Return the Unix time that is noted.
        """
        ...

    def forget(self, slots: Iterable[SlotId]) -> None:
        """Hear that slots are empty; those of which nothing is known are ignored."""
        ...

    def expired_before(self) -> float:
        """Return the Unix time before which a page is too old to be served; 0 where none is."""
        ...

    def flush(self) -> None:
        """Wait until all that was said is on disk, as far as it can be."""
        ...

    def close(self, in_order: Sequence[SlotId]) -> None:
        """Write all of it down and stop; slots named are given up first by the next process, in order. Idempotent."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """Return counters as plain values."""
        ...


class NullRegister:
    """Keeps nothing."""

    keeps = False
    writable = True
    found: Sequence[KeptPage] = ()
    idle_order: Sequence[int] = ()

    def remember(self, slot: SlotId, key: PageKey, parent: PageKey) -> float:
        """See `Register.remember`."""
        return 0.0

    def forget(self, slots: Iterable[SlotId]) -> None:
        """See `Register.forget`."""

    def expired_before(self) -> float:
        """See `Register.expired_before`."""
        return 0.0

    def flush(self) -> None:
        """See `Register.flush`."""

    def close(self, in_order: Sequence[SlotId]) -> None:
        """See `Register.close`."""

    def as_dict(self) -> dict[str, Any]:
        """See `Register.as_dict`."""
        return {"keeps": False}
