"""Three small tiers and a ring on one backend, and pages whose bytes are known by a number."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenvm.memory.backend import DeviceBackend
from tokenvm.memory.device import DeviceArena
from tokenvm.memory.disk import DiskStore
from tokenvm.memory.host import HostPool
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.tier import TierStore
from tokenvm.memory.transfer import TransferEngine
from tokenvm.vocab import Answer, Move, SlotId, Tier, UnitId

LAYOUT = PageLayout(layers=3, part_bytes=5000)
DEVICE, HOST, DISK = Tier.DEVICE, Tier.HOST, Tier.DISK
PAGES, RING_SLOTS = 6, 5


def move(unit: int, source: Tier, source_slot: int, target: Tier, target_slot: int) -> Move:
    return Move(UnitId(unit), source, SlotId(source_slot), target, SlotId(target_slot))


class Rig:
    """Three small tiers and a ring on one backend."""

    def __init__(self, backend: DeviceBackend, path: Path) -> None:
        self.backend = backend
        self.arena = DeviceArena(backend, PAGES, LAYOUT)
        self.host = HostPool(backend, PAGES, LAYOUT)
        self.disk = DiskStore(path, PAGES * LAYOUT.page_bytes, LAYOUT, slab_pages=4)
        self.stores: dict[Tier, TierStore] = {DEVICE: self.arena, HOST: self.host, DISK: self.disk}
        self.region = backend.allocate(RING_SLOTS * LAYOUT.part_stride)
        self.ring = backend.ring(self.region.address, RING_SLOTS, LAYOUT.part_stride)
        self.engine = TransferEngine(backend, self.stores, self.ring)

    def part(self, slot: int, layer: int) -> NDArray[np.uint8]:
        return self.bytes_at(self.arena.address(slot, layer))

    def bytes_at(self, address: int) -> NDArray[np.uint8]:
        return np.ctypeslib.as_array((ctypes.c_uint8 * LAYOUT.part_stride).from_address(address))

    def write(self, slot: int, content: int) -> None:
        """Put a page into the arena whose bytes are known by its number."""
        for layer in range(LAYOUT.layers):
            self.part(slot, layer)[:] = content_of(content, layer)

    def holds(self, slot: int, content: int) -> bool:
        return all((self.part(slot, n) == content_of(content, n)).all() for n in range(LAYOUT.layers))

    def run(self, *moves: Move) -> Answer:
        return self.engine.submit(moves).wait()

    def store_pages(self, tier: Tier, count: int = PAGES) -> None:
        """Write pages 0..count - 1 to the same slots of a lower tier, and blank the arena."""
        for slot in range(count):
            self.write(slot, slot)
        assert self.run(*(move(i, DEVICE, i, tier, i) for i in range(count))) is Answer.HIT
        for slot in range(count):
            self.arena.fill(slot, 0)

    def damage(self, slot: int, layer: int) -> None:
        """Flip one bit of a part on disk, behind everybody's back."""
        place = self.disk.places(slot, layer)
        fd = os.open(f"/proc/self/fd/{int(place.fd)}", os.O_RDWR)
        at = int(place.place) + 4321
        os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 0x10]), at)
        os.close(fd)

    def close(self) -> None:
        self.backend.close()
        for store in self.stores.values():
            store.close()


def content_of(page: int, layer: int) -> NDArray[np.uint8]:
    return np.random.default_rng([page, layer]).integers(0, 256, LAYOUT.part_stride, dtype=np.uint8)
