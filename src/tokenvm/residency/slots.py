"""The slots of one tier: which are free, and which are withheld from use."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection

from tokenvm.vocab import SlotId

_MOST_RETIRED = 16
"""At most the 16th part of a tier is retired, and at least one slot; beyond that the one retired first serves again."""


class SlotPool:
    """Free slots, lowest first, so that pages made one after another tend to lie one after another.

    Withheld are all free slots while it is `closed`, those from `bound` on, and the retired. What is in use stays so.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.high_water = 0
        self.bound = capacity
        self.closed = False
        self.writable = True
        self._fresh = 0  # slots at or above this were never taken
        self._returned: list[int] = []
        self._retired: deque[int] = deque()

    @property
    def free(self) -> int:
        """How many slots may be taken."""
        if self.closed or not self.writable:
            return 0
        if self.bound >= self.capacity:
            return self.capacity - self._fresh + len(self._returned)
        return max(0, self.bound - self._fresh) + sum(slot < self.bound for slot in self._returned)

    def serves(self, slot: SlotId) -> bool:
        """Whether a taken slot may be taken again once it has been given back."""
        return self.writable and not self.closed and slot < self.bound

    @property
    def used(self) -> int:
        """How many slots are taken."""
        return self._fresh - len(self._returned) - len(self._retired)

    @property
    def usable(self) -> int:
        """How many slots are taken or may be."""
        return self.used + self.free

    @property
    def retired(self) -> int:
        """How many slots are not used because a copy into or out of them failed."""
        return len(self._retired)

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

    def retire(self, slot: SlotId) -> None:
        """Take a slot that was given back out of use for a while."""
        self._returned.remove(slot)
        heapq.heapify(self._returned)
        self._retired.append(slot)
        if len(self._retired) > max(1, self.capacity // _MOST_RETIRED):
            heapq.heappush(self._returned, self._retired.popleft())

    def free_slots(self) -> set[int]:
        """Return every slot that was taken before and is not now; for `check`."""
        return {*self._returned, *self._retired}
