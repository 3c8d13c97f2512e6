"""Room: who leaves a tier when its slots are needed, and who is let go of for good (docs/decisions/0010)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set

from tokenvm.errors import StorageError
from tokenvm.moves import Moves
from tokenvm.residency.health import IN_A_ROW
from tokenvm.residency.ledger import Ledger
from tokenvm.residency.planner import (
    Pages,
    Parting,
    Victim,
    choose_idle,
    choose_running,
    choose_victims,
    unwritten_of,
)
from tokenvm.residency.policy.base import Policy
from tokenvm.residency.prefix_index import PrefixIndex
from tokenvm.vocab import Answer, Tier, UnitId

_WRITE_ATTEMPTS = 2 * IN_A_ROW  # by then a tier that fails is closed


class Room:
    """Owners of units come and go here too, so that a page nobody needs is known to be idle at once."""

    def __init__(self, ledger: Ledger, policy: Policy[UnitId], index: PrefixIndex, moves: Moves) -> None:
        self._ledger = ledger
        self._policy = policy
        self._index = index
        self._moves = moves
        self._promised: list[UnitId] = []
        self._idle_written = 0  # no idle page was left to write at this version of the index
        self.reclaimed_pages = 0  # idle pages that were let go of for good

    def make(self, slots: int, running: Sequence[Pages]) -> None:
        """Free device slots until `slots` are free, waiting for writes where it must.

        Raises:
            StorageError: running sequences need every slot, or pages cannot be written.
        """
        if slots <= self._ledger.free(Tier.DEVICE):
            return
        self._moves.settle()
        needed = {unit for pages in running for unit in pages}
        failed = 0
        while (short := slots - self._ledger.free(Tier.DEVICE)) > 0:
            victims = self._keep_promise(short) or choose_idle(short, self._ledger, self._policy, needed)
            if not victims and self._let_go_for_idle(short, needed):
                continue
            victims = victims or choose_running(short, self._ledger, running)
            if not victims and (self._let_go_for_running(running) or self._moves.finish_first()):
                continue
            victims = victims or choose_running(short, self._ledger, [self._unranked(needed)])
            if not victims:
                raise StorageError("every page on the device is in use: raise kv_limit or lower max_num_seqs")
            failed += [self._part(victim) for victim in victims].count(Answer.MISS)
            if failed >= _WRITE_ATTEMPTS:
                raise StorageError(
                    "pages cannot be written to disk: check the disk below nvme_path, or set another"
                )

    def displace(self, slots: int, needed: Set[UnitId]) -> None:
        """Free device slots until `slots` are free, by dropping idle pages that have a whole copy below."""
        short = slots - self._ledger.free(Tier.DEVICE)
        for victim in choose_idle(self._ledger.used(Tier.DEVICE), self._ledger, self._policy, needed):
            if short > 0 and victim.parting is Parting.DROP:
                self._drop(victim.unit)
                short -= 1

    def make_below(self, slots: int) -> bool:
        """Let go of idle pages until `slots` are free below the device; return whether any was let go of."""
        gone = False
        while self.free_below < slots and self._let_go(self._lies_below):
            gone = True
        return gone

    def make_on_disk(self, slots: int) -> None:
        """Let go of idle pages that lie on disk, at most `slots`, until as many slots are free there."""
        while (free := self._ledger.free(Tier.DISK)) < slots:
            gone = self._let_go(lambda unit: self._serves(unit, Tier.DISK))
            if not gone or self._ledger.free(Tier.DISK) == free:
                return  # nobody is left, or it would not help

    def idle_to_write(self, running: Sequence[Pages]) -> list[UnitId]:
        """Return idle pages without a copy below, in the order they leave, once three quarters of the device are taken.

        All of them, as long as there is room below; else those among the sixteenth of the device that leaves first,
        where older idle pages give up their room below.
        """
        slots = self._ledger.capacity(Tier.DEVICE)
        if not any(self._ledger.capacity(tier) for tier in (Tier.HOST, Tier.DISK)):
            return []
        if self._ledger.free(Tier.DEVICE) * 4 >= slots or self._index.version == self._idle_written:
            return []
        count = slots if self.free_below else -(-slots // 16)
        needed = {unit for pages in running for unit in pages}
        units = unwritten_of(choose_idle(count, self._ledger, self._policy, needed, room=count))
        if self.free_below:
            self._idle_written = self._index.version if len(units) <= self.free_below else 0
            return units
        while self.free_below < len(units) and self._first_lies_below():
            self._let_go(self._lies_below)
        return units

    @property
    def free_below(self) -> int:
        """Free slots below the device."""
        return self._ledger.free(Tier.HOST) + self._ledger.free(Tier.DISK)

    @property
    def usable_below(self) -> int:
        """Slots below the device that are taken or may be, as the tiers are now."""
        return sum(self._ledger.pool(tier).usable for tier in (Tier.HOST, Tier.DISK))

    def tier_below(self) -> Tier | None:
        """Return the fastest tier below the device that has a free slot."""
        return next((tier for tier in (Tier.HOST, Tier.DISK) if self._ledger.free(tier)), None)

    def foresee(self, slots: int, running: Sequence[Pages]) -> list[UnitId]:
        """Choose who leaves when the next step makes `slots` pages: of those with a copy below. It is kept to."""
        short = slots - self._ledger.free(Tier.DEVICE)
        chosen = choose_victims(short, self._ledger, self._policy, running) if short > 0 else []
        self._promised = [victim.unit for victim in chosen if victim.parting is Parting.DROP]
        return list(self._promised)

    def retain(self, units: Iterable[UnitId]) -> None:
        """One more owner for each."""
        for unit in units:
            self._ledger.retain(unit)
            self._index.used(unit)

    def release(self, units: Sequence[UnitId]) -> None:
        """One owner less for each, the last first; copies nobody needs any more go."""
        for unit in reversed(units):
            if self._ledger.owners(unit) == 1:
                self._policy.remove(unit)
                self._promised = [other for other in self._promised if other != unit]
                self._ledger.release(unit)
                continue
            self._ledger.release(unit)
            if unit in self._index and self._ledger.owners(unit) == 1:
                self._index.idle(unit)
                self._policy.touch(unit)

    def forget(self, unit: UnitId, *, evicted: bool = False) -> None:
        """Let an indexed page go for good, with all that go on from it. Who else owns one keeps it.

        `evicted`: for want of room.
        """
        gone = self._index.remove(unit, evicted=evicted)
        self.reclaimed_pages += sum(self._ledger.owners(one) == 1 for one in gone)
        self.release(gone)

    def _let_go(self, allowed: Callable[[UnitId], bool]) -> bool:
        self._index.crowded()
        first = self._index.first_to_go(allowed)
        for unit in first:
            self.forget(unit, evicted=True)
        return bool(first)

    def _let_go_for_idle(self, slots: int, needed: Set[UnitId]) -> bool:
        """If idle pages stay on the device for want of room below, let go of as many pages, the first to go anywhere.

        The slot of one that lies below is room for one that is wanted more.
        """
        if not choose_idle(1, self._ledger, self._policy, needed, room=1):
            return self._let_go(lambda unit: self._ledger.resident(unit, Tier.DEVICE))
        return [self._let_go(self._takes_room) for _ in range(slots)].count(True) > 0

    def _unranked(self, needed: Set[UnitId]) -> list[UnitId]:
        """Pages of sequences at rest, under a policy that has no victims."""
        return [unit for unit in self._ledger.units() if unit not in needed]

    def _let_go_for_running(self, running: Sequence[Pages]) -> bool:
        """If running pages stay on the device for want of room below, let go of idle pages that lie there."""
        return bool(choose_running(1, self._ledger, running, room=1)) and self.make_below(1)

    def _first_lies_below(self) -> bool:
        return any(map(self._lies_below, self._index.first_to_go(lambda _: True)))

    def _lies_below(self, unit: UnitId) -> bool:
        """Whether its slot below the device is of use to others."""
        return self._serves(unit, Tier.HOST) or self._serves(unit, Tier.DISK)

    def _serves(self, unit: UnitId, tier: Tier) -> bool:
        """Whether it lies in a tier, in a slot that may be taken again."""
        if not self._ledger.resident(unit, tier):
            return False
        return self._ledger.pool(tier).serves(self._ledger.slot(unit, tier))

    def _takes_room(self, unit: UnitId) -> bool:
        return self._lies_below(unit) or self._ledger.resident(unit, Tier.DEVICE)

    def _keep_promise(self, most: int) -> list[Victim]:
        """Return at most so many of those chosen before who may still leave at once; a promise is kept once."""
        promised, self._promised = self._promised[:most], []
        return [Victim(unit, Parting.DROP) for unit in promised if self._ledger.droppable(unit, Tier.DEVICE)]

    def _part(self, victim: Victim) -> Answer:
        """Let one page leave the device; HIT once it has left or its copy below is whole."""
        unit = victim.unit
        if unit not in self._ledger:
            return Answer.HIT  # let go of with the one before
        if victim.parting is Parting.DROP:
            self._drop(unit)
            return Answer.HIT
        try:
            if victim.parting is Parting.DEMOTE:
                self._demote(unit)
            self._moves.finish_of([unit])
        except StorageError:
            if not self._index.is_idle(unit):
                raise
        if self._ledger.droppable(unit, Tier.DEVICE):
            return Answer.HIT
        if not self._index.is_idle(unit):
            return Answer.MISS
        self.forget(unit, evicted=True)  # what cannot be written and nobody needs
        return Answer.HIT

    def _drop(self, unit: UnitId) -> None:
        self._ledger.drop(unit, Tier.DEVICE)
        self._policy.evict(unit)

    def _demote(self, unit: UnitId) -> None:
        """Start writing a page down; where the disk has less space than its limit says, where an idle page lies."""
        while True:
            free, tier = self.free_below, self.tier_below()
            if tier is None:
                raise StorageError("host and disk tiers are full: raise nvme_limit or host_memory")
            try:
                self._moves.start([self._ledger.begin(unit, Tier.DEVICE, tier)], urgent=True)
                return
            except StorageError:
                if 0 < self.free_below < free:
                    continue  # there is space, but less than was believed
                if self._index.is_idle(unit) or not self._let_go(self._lies_below):
                    raise
