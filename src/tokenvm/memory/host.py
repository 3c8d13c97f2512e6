"""The host tier: a pool of RAM, page-major."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tokenvm.errors import StorageError
from tokenvm.memory.backend import DeviceBackend
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.tier import Places, memory_places
from tokenvm.vocab import Tier


class HostPool:
    """`slots` pages in RAM. Memory is committed when a page first lands."""

    tier = Tier.HOST
    packs = False

    def __init__(self, backend: DeviceBackend, slots: int, layout: PageLayout) -> None:
        assert slots > 0, f"HostPool: slots={slots}; a tier that is off is a NullStore"
        self.capacity = slots
        self.layout = layout
        self.checksums = np.zeros((slots, layout.layers), np.uint32)
        self.packed = np.zeros((slots, layout.layers), np.uint8)
        self.high_water_bytes = 0
        self.ensured = slots
        self._region = backend.allocate(slots * layout.page_bytes)

    def ensure(self, slots: int) -> None:
        """See `TierStore.ensure`."""
        if slots > self.capacity:
            raise StorageError(
                f"the host tier holds {self.capacity} pages and {slots} are needed: "
                f"raise host_memory to {slots * self.layout.page_bytes} bytes"
            )
        self.high_water_bytes = max(self.high_water_bytes, slots * self.layout.page_bytes)

    def places(self, slots: ArrayLike, layer: ArrayLike) -> Places:
        """See `TierStore.places`."""
        return memory_places(self._region.address, self.layout, slots, layer)

    def close(self) -> None:
        """See `TierStore.close`."""
        self._region.close()
