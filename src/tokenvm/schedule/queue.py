"""Who waits, in order: by priority, then by arrival."""

from __future__ import annotations

import heapq

from tokenvm.schedule.request import Sequence
from tokenvm.vocab import SeqId


class Queue:
    """Sequences that do not run. Looking at the first takes no time in their number, adding and taking log of it."""

    def __init__(self) -> None:
        self._waiting: dict[SeqId, Sequence] = {}
        self._heap: list[tuple[int, SeqId]] = []  # may name some that left; those at its top are dropped

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, seq: SeqId) -> bool:
        return seq in self._waiting

    def at(self, seq: SeqId) -> Sequence:
        """Return somebody who waits."""
        return self._waiting[seq]

    def push(self, sequence: Sequence) -> None:
        """Let a sequence wait at its rank: behind all of lower priority numbers, before all that came later."""
        self._waiting[sequence.seq] = sequence
        heapq.heappush(self._heap, sequence.rank)

    def first(self) -> Sequence | None:
        """Return who comes next, None if nobody waits."""
        while self._heap and self._heap[0][1] not in self._waiting:
            heapq.heappop(self._heap)
        return self._waiting[self._heap[0][1]] if self._heap else None

    def pop(self) -> Sequence:
        """Take who comes next; somebody waits."""
        sequence = self.first()
        assert sequence is not None, "nobody waits"
        heapq.heappop(self._heap)
        return self._waiting.pop(sequence.seq)

    def remove(self, seq: SeqId) -> None:
        """Let somebody leave from anywhere."""
        del self._waiting[seq]
        if len(self._heap) > 2 * len(self._waiting) + 64:
            self._heap = [waiting.rank for waiting in self._waiting.values()]
            heapq.heapify(self._heap)
