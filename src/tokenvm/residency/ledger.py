"""The ledger: every unit, its copies in the tiers, who needs it. Decides nothing, forgets nothing.

Laws, held by `check()`: per tier, free + resident + arriving = capacity; a unit is never nowhere, unless its last copy
was found damaged and said to be lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from tokenvm.residency.slots import SlotPool
from tokenvm.residency.unit import Copy, Found, Unit, check_unit
from tokenvm.vocab import Answer, Home, Move, SlotId, Tier, UnitId


class Ledger:
    """Units, copies, pins and slots of all tiers. One owner, no locks."""

    def __init__(self, capacity: Mapping[Tier, int]) -> None:
        self._pools = {tier: SlotPool(capacity.get(tier, 0)) for tier in Tier}
        self._units: dict[UnitId, Unit] = {}
        self._next = 0
        self._freed: dict[Tier, list[SlotId]] = {Tier.DEVICE: [], Tier.DISK: []}
        self.version = 0  # grows whenever the device gains or loses a whole copy

    def __contains__(self, unit: UnitId) -> bool:
        return unit in self._units

    def create(self, tier: Tier, home: Home = Home.RECOMPUTE) -> UnitId:
        """Bring a unit to life with a whole copy in `tier`, which has a free slot."""
        unit = UnitId(self._next)
        self._next += 1
        self._units[unit] = Unit(home, {tier: Copy(self._pools[tier].take())})
        self.version += 1
        return unit

    def restore(self, tier: Tier, slots: Sequence[SlotId], writable: bool = True) -> list[UnitId]:
        """Bring sealed units to life that lie in these slots of a fresh tier. If not `writable`, nothing joins them."""
        self._pools[tier].claim(slots, writable)
        units = [UnitId(self._next + at) for at in range(len(slots))]
        self._next += len(slots)
        for unit, slot in zip(units, slots, strict=True):
            self._units[unit] = Unit(Home.RECOMPUTE, {tier: Copy(slot)}, sealed=True)
        return units

    def seal(self, unit: UnitId) -> None:
        """Say that the unit's bytes will never change again."""
        self._units[unit].sealed = True

    def unseal(self, unit: UnitId) -> None:
        """Say that the unit's bytes may change again: it has no copy but that on the device, which no move reads."""
        entry = self._units[unit]
        copy = entry.copies.get(Tier.DEVICE)
        alone = copy is not None and len(entry.copies) == 1 and not copy.arriving and not copy.sources
        assert alone, f"unit {unit}: other copies of it would be stale"
        entry.sealed = False

    def begin(self, unit: UnitId, source: Tier, target: Tier) -> Move:
        """Start a copy from tier to tier; the source stays valid. `target` has a free slot and no copy yet."""
        entry = self._units[unit]
        origin = entry.copies[source]
        assert not origin.arriving, f"unit {unit}: its copy in {source.name} is not whole"
        assert target not in entry.copies, f"unit {unit}: {target.name} already has a copy"
        slot = self._pools[target].take()
        entry.copies[target] = Copy(slot, arriving=True)
        origin.sources += 1
        return Move(unit, source, origin.slot, target, slot)

    def land(self, move: Move) -> None:
        """The copy that `move` makes is whole."""
        self._end(move)
        self._units[move.unit].copies[move.target].arriving = False
        self.version += move.target is Tier.DEVICE
        self._bury(move.unit)

    def fail(self, move: Move) -> None:
        """The copy that `move` makes will not come; its slot is free again."""
        self._end(move)
        self._forget(self._units[move.unit], move.target)
        self._bury(move.unit)

    def moving(self, move: Move) -> bool:
        """Whether the move has neither landed nor failed yet."""
        entry = self._units.get(move.unit)
        copy = None if entry is None else entry.copies.get(move.target)
        return copy is not None and copy.arriving and copy.slot == move.target_slot

    def stale(self, move: Move) -> bool:
        """Whether the move's unit lives, is open, and has a copy where the move goes: of tokens never committed."""
        entry = self._units.get(move.unit)
        return entry is not None and not entry.sealed and move.target in entry.copies

    def drop(self, unit: UnitId, tier: Tier) -> None:
        """Give up one copy; another whole one remains."""
        entry = self._units[unit]
        assert self.droppable(unit, tier), f"unit {unit}: its copy in {tier.name} may not be dropped"
        self._forget(entry, tier)

    def droppable(self, unit: UnitId, tier: Tier) -> bool:
        """Whether `drop` is allowed: whole, not read by a move, not pinned there, and not the last whole copy."""
        entry = self._units[unit]
        copy = entry.copies.get(tier)
        if copy is None or copy.arriving or copy.sources:
            return False
        if tier is Tier.DEVICE and entry.pins:
            return False
        return any(other is not copy and not other.arriving for other in entry.copies.values())

    def lose(self, unit: UnitId, tier: Tier) -> bool:
        """A copy is damaged and goes; return whether the unit is lost with it (then its owners must let go).

        The copy is whole, no move reads it any more, and no pin holds it.
        """
        entry = self._units[unit]
        copy = entry.copies[tier]
        assert not copy.arriving, f"unit {unit}: its copy in {tier.name} is not whole: fail the move"
        assert not copy.sources, f"unit {unit}: a move reads its copy in {tier.name}: end it first"
        assert tier is not Tier.DEVICE or not entry.pins, f"unit {unit}: its device copy is pinned"
        self._forget(entry, tier)
        entry.lost = not entry.copies
        return entry.lost

    def pin(self, units: Iterable[UnitId]) -> None:
        """Hold whole device copies where they are until `unpin`."""
        for unit in units:
            assert self.resident(unit, Tier.DEVICE), f"unit {unit} has no whole device copy to pin"
            self._units[unit].pins += 1

    def unpin(self, units: Iterable[UnitId]) -> None:
        """Undo one `pin` of each."""
        for unit in units:
            entry = self._units[unit]
            assert entry.pins > 0, f"unit {unit} is not pinned"
            entry.pins -= 1
            self._bury(unit)

    def retain(self, unit: UnitId) -> None:
        """One more owner needs the unit."""
        self._units[unit].references += 1

    def release(self, unit: UnitId) -> None:
        """One owner less; at none the copies go, those in use as soon as they are free of it."""
        entry = self._units[unit]
        assert entry.references > 0, f"unit {unit} has no owner"
        entry.references -= 1
        self._bury(unit)

    def owners(self, unit: UnitId) -> int:
        """Return how many owners need the unit."""
        return self._units[unit].references

    def shared(self, unit: UnitId) -> bool:
        """Whether more than one owner needs the unit."""
        return self._units[unit].references > 1

    def find(self, unit: UnitId) -> Found:
        """Return where the fastest whole copy lies."""
        copies = self._units[unit].copies
        for tier in Tier:
            if tier in copies and not copies[tier].arriving:
                return Found(Answer.HIT, tier, copies[tier].slot)
        return Found(Answer.IN_FLIGHT if copies else Answer.MISS, Tier.DISK, SlotId(0))

    def below(self, unit: UnitId) -> Found:
        """Return where the fastest whole copy below the device lies; there is one."""
        copies = self._units[unit].copies
        tier = next(tier for tier in (Tier.HOST, Tier.DISK) if self.resident(unit, tier))
        return Found(Answer.HIT, tier, copies[tier].slot)

    def resident(self, unit: UnitId, tier: Tier) -> bool:
        """Whether a whole copy lies in `tier`."""
        copy = self._units[unit].copies.get(tier)
        return copy is not None and not copy.arriving

    def arriving(self, unit: UnitId, tier: Tier) -> bool:
        """Whether a copy is on its way to `tier`."""
        copy = self._units[unit].copies.get(tier)
        return copy is not None and copy.arriving

    def slot(self, unit: UnitId, tier: Tier) -> SlotId:
        """Return the slot of the copy in `tier`, which exists."""
        return self._units[unit].copies[tier].slot

    def sealed(self, unit: UnitId) -> bool:
        """Whether the unit's bytes are final."""
        return self._units[unit].sealed

    def lost(self, unit: UnitId) -> bool:
        """Whether the unit's last copy was given up as damaged."""
        return self._units[unit].lost

    def pinned(self, unit: UnitId) -> bool:
        """Whether the unit's device copy is held in place."""
        return self._units[unit].pins > 0

    def lowered(self, unit: UnitId) -> bool:
        """Whether a whole or arriving copy lies below the device."""
        return any(tier is not Tier.DEVICE for tier in self._units[unit].copies)

    def units(self) -> Iterator[UnitId]:
        """Every live unit, oldest first."""
        return iter(list(self._units))

    def capacity(self, tier: Tier) -> int:
        """Slots of a tier."""
        return self._pools[tier].capacity

    def free(self, tier: Tier) -> int:
        """Free slots of a tier."""
        return self._pools[tier].free

    def used(self, tier: Tier) -> int:
        """Taken slots of a tier."""
        return self._pools[tier].used

    def pool(self, tier: Tier) -> SlotPool:
        """Return the slots of a tier, to withhold some from use."""
        return self._pools[tier]

    def writable(self, tier: Tier) -> bool:
        """Whether anything may be put into a tier at all."""
        return self._pools[tier].writable

    def high_water(self, tier: Tier) -> int:
        """The most slots of a tier that were ever taken."""
        return self._pools[tier].high_water

    def drain_freed(self, tier: Tier = Tier.DEVICE) -> list[SlotId]:
        """Slots of device or disk freed since last asked (they may have been taken again)."""
        freed, self._freed[tier] = self._freed[tier], []
        return freed

    def check(self) -> None:
        """Assert every law."""
        for tier, pool in self._pools.items():
            slots = [unit.copies[tier].slot for unit in self._units.values() if tier in unit.copies]
            assert len(slots) == len(set(slots)), f"{tier.name}: two units in one slot"
            assert len(slots) == pool.used <= pool.usable <= pool.capacity, f"{tier.name}: slots leaked"
            assert not pool.free_slots().intersection(slots), f"{tier.name}: a slot is free and taken"
        for name, unit in self._units.items():
            check_unit(name, unit)

    def _end(self, move: Move) -> None:
        source = self._units[move.unit].copies[move.source]
        assert source.sources > 0, f"unit {move.unit}: no move reads its copy in {move.source.name}"
        source.sources -= 1

    def _forget(self, entry: Unit, tier: Tier) -> None:
        copy = entry.copies.pop(tier)
        self._pools[tier].give(copy.slot)
        self.version += tier is Tier.DEVICE
        if tier in self._freed:
            self._freed[tier].append(copy.slot)

    def _bury(self, unit: UnitId) -> None:
        """Free what nobody owns any more, unless a move or a pin still needs it."""
        entry = self._units[unit]
        if entry.references or entry.pins:
            return
        for tier, copy in list(entry.copies.items()):
            if not copy.arriving and not copy.sources:
                self._forget(entry, tier)
        if not entry.copies:
            del self._units[unit]
