"""The device tier: one arena, page-major, whose parts the attention kernels read in place."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tokenvm.errors import StorageError
from tokenvm.memory.backend import DeviceBackend
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.tier import Places, memory_places
from tokenvm.vocab import Tier

POISON = 0xFF
"""What freed slots are filled with when asked: NaN in every float format."""


class DeviceArena:
    """`slots` pages; part (slot, layer) lies at `base + slot * page_bytes + layer * part_stride`.

    The owner zero-fills a slot before it becomes an open page, so that bytes past its length are finite. With
    `poison` a freed slot is filled with NaN, so that a read after free shows.
    """

    tier = Tier.DEVICE
    packs = False

    def __init__(self, backend: DeviceBackend, slots: int, layout: PageLayout, poison: bool = False) -> None:
        assert slots > 0, f"DeviceArena: slots={slots}"
        self.capacity = slots
        self.layout = layout
        self.poison = poison
        self.checksums = np.zeros((slots, layout.layers), np.uint32)
        self.packed = np.zeros((slots, layout.layers), np.uint8)
        self.high_water_bytes = 0
        self.ensured = slots
        self._backend = backend
        self._region = backend.allocate(slots * layout.page_bytes)

    @property
    def base(self) -> int:
        """Where slot 0 begins."""
        return self._region.address

    def address(self, slot: int, layer: int = 0) -> int:
        """Where one part lies."""
        return self._region.address + slot * self.layout.page_bytes + layer * self.layout.part_stride

    def addresses(self, slots: ArrayLike, layer: ArrayLike = 0) -> NDArray[np.uint64]:
        """Where parts lie; `slots` and `layer` broadcast."""
        return self.places(slots, layer).place

    def fill(self, slot: int, byte: int = 0) -> None:
        """Fill a whole page: 0 before it is appended to."""
        self._backend.writing(self.addresses(slot, np.arange(self.layout.layers)))
        self._backend.fill(self.address(slot), byte, self.layout.page_bytes)

    def freed(self, slots: ArrayLike) -> None:
        """Hear that slots are free again; poisons them if the arena was told to."""
        if self.poison:
            for slot in np.atleast_1d(np.asarray(slots)).tolist():
                self.fill(slot, POISON)

    def ensure(self, slots: int) -> None:
        """See `TierStore.ensure`."""
        if slots > self.capacity:
            raise StorageError(
                f"the device arena holds {self.capacity} pages and {slots} are needed: "
                f"raise kv_limit or vram_limit to leave {slots * self.layout.page_bytes} bytes for pages"
            )
        self.high_water_bytes = max(self.high_water_bytes, slots * self.layout.page_bytes)

    def places(self, slots: ArrayLike, layer: ArrayLike) -> Places:
        """See `TierStore.places`."""
        return memory_places(self._region.address, self.layout, slots, layer)

    def close(self) -> None:
        """See `TierStore.close`."""
        self._region.close()
