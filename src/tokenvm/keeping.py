"""Pages that outlive the process: taken over at the start, written down once they have a name, let go of with age."""

from __future__ import annotations

import logging
from collections import deque
from typing import Final

from tokenvm.errors import StorageError
from tokenvm.memory.register import Register
from tokenvm.moves import Moves
from tokenvm.residency.ledger import Ledger
from tokenvm.residency.prefix_index import PrefixIndex
from tokenvm.room import Room
from tokenvm.vocab import Answer, Tier, UnitId

SPARE_AGES: Final = 64
"""So many ages more than twice the slots of the disk are noted, before those that mean nothing any more go."""

_log = logging.getLogger("tokenvm.vm")


class Keeping:
    """Tells the register of the disk what lies where, and sees to it that named pages get there.

    Where the disk is `ample`, holding at least as many pages as the device, each named page is written down, and those
    used longest ago make room for it. Where it holds fewer, only idle pages are, while there is room.
    """

    def __init__(
        self, ledger: Ledger, index: PrefixIndex, room: Room, moves: Moves, register: Register
    ) -> None:
        self._ledger = ledger
        self._index = index
        self._room = room
        self._moves = moves
        self.register = register
        self.ample = ledger.capacity(Tier.DISK) >= ledger.capacity(Tier.DEVICE)
        self._fresh: list[UnitId] = []  # named, and not known to lie on disk or to be on the way there
        self._aging: deque[tuple[float, UnitId]] = deque()  # by when they were written
        self._late: list[UnitId] = []  # too old, but in use
        self._seen = -1  # version of the index when idle pages were last looked through
        self._take_over()

    @property
    def capacity(self) -> int:
        """Slots of the disk that may be written to."""
        return self._ledger.capacity(Tier.DISK) if self.register.writable else 0

    def named(self, unit: UnitId) -> None:
        """Hear that a page was indexed."""
        if not self.register.keeps:
            return
        if self._ledger.resident(unit, Tier.DISK):
            self._remember(unit)
        elif not self._ledger.arriving(unit, Tier.DISK):
            self._fresh.append(unit)

    def swept(self) -> None:
        """Tell the register which slots came free and which pages landed since."""
        self.register.forget(self._ledger.drain_freed(Tier.DISK))
        for unit in self._moves.drain_lowered():
            if unit in self._index and self._ledger.resident(unit, Tier.DISK):
                self._remember(unit)

    def tend(self) -> None:
        """Start writing what was named since, and let go of what has become too old. Between steps."""
        self.expire()
        wanted = self._wanted() if self.register.keeps else []
        if wanted:
            self._write(wanted)

    def close(self) -> None:
        """Write down what is still missing; wait until the register has all of it."""
        if self.register.keeps:
            self.tend()
            while self._moves.finish_first():
                pass
            self.swept()
        kept = [unit for unit in self._index.idle_order() if self._ledger.resident(unit, Tier.DISK)]
        self.register.close([self._ledger.slot(unit, Tier.DISK) for unit in kept])

    def _take_over(self) -> None:
        """Index the pages that were found; nobody else owns them, so they are idle."""
        found = self.register.found
        if not found and self.register.writable:
            return
        units = self._ledger.restore(Tier.DISK, [page.slot for page in found], self.register.writable)
        for unit, page in zip(units, found, strict=True):
            added = self._index.add(page.key, page.parent, unit)
            assert added, f"unit {unit}: found twice, or without the page before it"
        for place in self.register.idle_order:
            self._index.idle(units[place])
        ages = zip((page.written_s for page in found), units, strict=True)
        self._aging.extend(sorted((float(written_s), unit) for written_s, unit in ages))

    def _remember(self, unit: UnitId) -> None:
        key, parent = self._index.name(unit)
        written_s = self.register.remember(self._ledger.slot(unit, Tier.DISK), key, parent)
        if self.register.expired_before():
            self._aging.append((written_s, unit))
            if len(self._aging) > 2 * self._ledger.capacity(Tier.DISK) + SPARE_AGES:
                self._forget_ages()

    def _forget_ages(self) -> None:
        """Keep the latest age of each page that is on disk."""
        latest: dict[UnitId, float] = {}
        for written_s, unit in self._aging:
            latest.pop(unit, None)
            if unit in self._index and self._ledger.resident(unit, Tier.DISK):
                latest[unit] = written_s
        self._aging = deque((written_s, unit) for unit, written_s in latest.items())

    def _wanted(self) -> list[UnitId]:
        """Return pages to write now: all that are fresh, or of those the idle ones, as far as they fit.

        None while the disk is closed; they stay fresh.
        """
        if not self._fresh:
            return []
        closed = self._ledger.pool(Tier.DISK).closed
        if self.ample and not closed:
            fresh, self._fresh = self._fresh, []
            return [unit for unit in fresh if self._writable(unit)]
        if self._seen == self._index.version:
            return []
        self._seen = self._index.version
        self._fresh = [unit for unit in self._fresh if self._writable(unit)]
        if closed:
            return []
        idle = [unit for unit in self._fresh if self._index.is_idle(unit)]
        return idle[: self._ledger.free(Tier.DISK)]

    def _writable(self, unit: UnitId) -> bool:
        if unit not in self._index or self._ledger.resident(unit, Tier.DISK):
            return False
        if self._ledger.arriving(unit, Tier.DISK):
            return False
        return self._ledger.find(unit).answer is Answer.HIT

    def _write(self, units: list[UnitId]) -> None:
        if self.ample:
            self._room.make_on_disk(len(units))
        coming = [unit for unit in units[: self._ledger.free(Tier.DISK)] if self._writable(unit)]
        try:
            self._moves.start(
                [self._ledger.begin(unit, self._ledger.find(unit).tier, Tier.DISK) for unit in coming]
            )
        except StorageError as error:
            _log.info("pages are not kept for the next process: %s", error)
            if self.ample:
                self._fresh += coming

    def expire(self) -> None:
        """Let go of idle pages that are too old; those in use are looked at again once they are idle. Between steps."""
        oldest_s = self.register.expired_before()
        while self._aging and self._aging[0][0] < oldest_s:
            self._late.append(self._aging.popleft()[1])
        late, self._late = self._late, []
        for unit in dict.fromkeys(late):
            if self._index.is_idle(unit):
                self._room.forget(unit)
            elif unit in self._index:
                self._late.append(unit)
