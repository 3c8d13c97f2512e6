"""A trial of a tier: one part is written to a free slot, read back and compared. No page of anybody is at risk."""

from __future__ import annotations

from typing import Final

import numpy as np

from tokenvm.memory.backend import OUTWARD, Batch, Check, Copies, DeviceBackend, Status
from tokenvm.memory.packing import Packing
from tokenvm.memory.tier import TierStore
from tokenvm.vocab import Answer, SlotId

_PATTERN: Final = 0x5A


class Probe:
    """One trial of `slot`, which has space and is left alone until `poll` has said HIT or MISS."""

    def __init__(self, backend: DeviceBackend, store: TierStore, slot: SlotId) -> None:
        self._backend, self._store, self.slot = backend, store, slot
        stride = store.layout.part_stride
        self._region = backend.allocate(2 * stride)
        self._back = self._region.address + stride
        backend.fill(self._region.address, _PATTERN, stride)
        self._written = self._start(self._region.address, OUTWARD, Check.COMPUTE, 0, packed=True)
        self._read: Batch | None = None

    def poll(self) -> Answer:
        """IN_FLIGHT, HIT where what was written came back, MISS where not; then it is over."""
        if self._read is None:
            if self._written.poll() is Answer.IN_FLIGHT:
                return Answer.IN_FLIGHT
            wrote = self._written.result()
            if wrote.status[0] != Status.LANDED:
                return self._end(Answer.MISS)
            checksum, packed = int(wrote.checksums[0]), bool(wrote.packed[0])
            self._read = self._start(self._back, 0, Check.VERIFY, checksum, packed=packed)
        if self._read.poll() is Answer.IN_FLIGHT:
            return Answer.IN_FLIGHT
        landed = self._read.result().status[0] == Status.LANDED
        return self._end(Answer.HIT if landed else Answer.MISS)

    def _end(self, answer: Answer) -> Answer:
        self._region.close()
        return answer

    def _start(self, address: int, direction: int, check: Check, checksum: int, *, packed: bool) -> Batch:
        layout, places = self._store.layout, self._store.places([self.slot], [0])
        packing = None
        if self._store.packs:
            far = np.array([places.far_bytes], np.uint64)
            packing = Packing(np.array([packed], np.uint8), far, places.tail)
        copies = Copies(
            kind=places.kind | np.uint8(direction),
            check=np.array([check], np.uint8),
            fd=np.ascontiguousarray(places.fd),
            place=places.place,
            address=np.array([address], np.uint64),
            nbytes=np.array([layout.part_stride], np.uint64),
            checksum=np.array([checksum], np.uint32),
            packing=packing,
        )
        return self._backend.copies().submit(copies, urgent=False)
