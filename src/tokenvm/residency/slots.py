"""The slots of one tier: which are free."""

from __future__ import annotations

import heapq

from tokenvm.vocab import SlotId


class SlotPool:
    """Free slots, lowest first, so that pages made one after another tend to lie one after another."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.high_water = 0
        self._fresh = 0  # slots at or above this were never taken
        self._returned: list[int] = []

    @property
    def free(self) -> int:
        """How many slots are free."""
        return self.capacity - self._fresh + len(self._returned)

    @property
    def used(self) -> int:
        """How many slots are taken."""
        return self.capacity - self.free

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

    def give(self, slot: SlotId) -> None:
        """Give a slot back."""
        assert 0 <= slot < self._fresh, f"SlotPool: slot {slot} was never taken"
        heapq.heappush(self._returned, slot)

    def free_slots(self) -> set[int]:
        """Return every free slot that was taken before; for `check`."""
        return set(self._returned)
