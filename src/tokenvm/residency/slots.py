"""The slots of one tier: which are free."""

from __future__ import annotations

import heapq
from collections.abc import Collection

from tokenvm.vocab import SlotId


class SlotPool:
    """Free slots, lowest first, so that pages made one after another tend to lie one after another."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.high_water = 0
        self.writable = True
        self._fresh = 0  # slots at or above this were never taken
        self._returned: list[int] = []

    @property
    def free(self) -> int:
        """How many slots are free."""
        if not self.writable:
            return 0
        return self.capacity - self._fresh + len(self._returned)

    @property
    def used(self) -> int:
        """How many slots are taken."""
        return self._fresh - len(self._returned)

    def take(self) -> SlotId:
        """Take the lowest free slot. The caller made sure that there is one."""
        assert self.free > 0, f"SlotPool: all {self.capacity} slots are taken"
        if self._returned:
            slot = heapq.heappop(self._returned)
        else:
            slot = self._fresh
            self._fresh += 1
        self.high_water = max(self.high_water, self.used)
        return SlotId(slot)

    def claim(self, slots: Collection[SlotId], writable: bool) -> None:
        """Take just these slots of a pool that has given none yet. If it is not `writable`, it never gives any."""
        assert self._fresh == 0, "SlotPool.claim: slots were taken before"
        taken = set(slots)
        self._fresh = max(slots, default=-1) + 1
        assert len(taken) == len(slots), "SlotPool.claim: a slot comes twice"
        assert 0 <= min(slots, default=0) <= self._fresh <= self.capacity, "SlotPool.claim: a slot is outside"
        self._returned = [slot for slot in range(self._fresh) if slot not in taken]
        self.high_water = len(slots)
        self.writable = writable

    def give(self, slot: SlotId) -> None:
        """Give a slot back."""
        assert 0 <= slot < self._fresh, f"SlotPool: slot {slot} was never taken"
        heapq.heappush(self._returned, slot)

    def free_slots(self) -> set[int]:
        """Return every free slot that was taken before; for `check`."""
        return set(self._returned)
