"""What every tier's store offers: slots for pages, and where each part of a slot lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tokenvm.errors import StorageError
from tokenvm.memory.layout import PageLayout
from tokenvm.vocab import Tier


@dataclass(frozen=True, slots=True)
class Places:
    """Where parts lie, in the shape asked for. `kind` is the copy that reads them: READ or COPY_IN.

    `far_bytes` of a part lie at `place`; the rest, where that is not all of it and it is not packed, at `tail`.
    """

    kind: NDArray[np.uint8]
    fd: NDArray[np.int32]
    place: NDArray[np.uint64]
    tail: NDArray[np.uint64]
    far_bytes: int


class TierStore(Protocol):
    """Slots of one tier. Which slot is used by whom is the ledger's business, not the store's."""

    @property
    def tier(self) -> Tier:
        """Which tier this is."""
        ...

    @property
    def capacity(self) -> int:
        """How many slots it will ever have."""
        ...

    @property
    def layout(self) -> PageLayout:
        """The parts of a page."""
        ...

    @property
    def checksums(self) -> NDArray[np.uint32]:
        """CRC-32C of each part, [capacity, layers], written when a page lands here."""
        ...

    @property
    def packed(self) -> NDArray[np.uint8]:
        """Whether each part is stored encoded, [capacity, layers], written when a page lands here."""
        ...

    @property
    def packs(self) -> bool:
        """Whether parts that fit are stored encoded here."""
        ...

    @property
    def high_water_bytes(self) -> int:
        """The most space it ever held."""
        ...

    @property
    def ensured(self) -> int:
        """How many slots have space: the first so many."""
        ...

    def ensure(self, slots: int) -> None:
        """Make sure that the first `slots` slots have space; StorageError where they cannot."""
        ...

    def places(self, slots: ArrayLike, layer: ArrayLike) -> Places:
        """Say where parts lie; `slots` and `layer` broadcast. The slots have space (`ensure`)."""
        ...

    def close(self) -> None:
        """Give everything back; idempotent. No copy may be in flight."""
        ...


def memory_places(base: int, layout: PageLayout, slots: ArrayLike, layer: ArrayLike) -> Places:
    """Say where parts lie in a page-major region of memory at `base`."""
    offset = (
        np.asarray(slots, np.int64) * layout.page_bytes + np.asarray(layer, np.int64) * layout.part_stride
    )
    place = offset.astype(np.uint64) + np.uint64(base)
    kind, fd = np.full(place.shape, 2, np.uint8), np.full(place.shape, -1, np.int32)
    return Places(kind, fd, place, place, layout.part_stride)


class NullStore:
    """A tier that is switched off: no slots."""

    capacity = 0
    high_water_bytes = 0
    ensured = 0
    packs = False

    def __init__(self, tier: Tier, layout: PageLayout) -> None:
        self.tier = tier
        self.layout = layout
        self.checksums = np.zeros((0, layout.layers), np.uint32)
        self.packed = np.zeros((0, layout.layers), np.uint8)

    def ensure(self, slots: int) -> None:
        """Fit nothing but nothing."""
        if slots > 0:
            raise StorageError(f"the {self.tier.name.lower()} tier is switched off: give it a limit above 0")

    def places(self, slots: ArrayLike, layer: ArrayLike) -> Places:
        """Return no places for no slots."""
        shape = np.broadcast(np.asarray(slots), np.asarray(layer)).shape
        assert 0 in shape, f"{self.tier.name.lower()} tier is off, but a slot of it was asked for"
        nowhere = np.zeros(shape, np.uint64)
        kind, fd = np.zeros(shape, np.uint8), np.zeros(shape, np.int32)
        return Places(kind, fd, nowhere, nowhere, self.layout.part_stride)

    def close(self) -> None:
        """Nothing to give back."""
