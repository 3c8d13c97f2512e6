"""MemoryManager: the one file where decisions (residency) meet bytes (memory)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tokenvm.clock import Clock
from tokenvm.errors import StorageError
from tokenvm.frozen import Frozen
from tokenvm.keeping import Keeping
from tokenvm.kernels.paging import copy
from tokenvm.losses import Losses
from tokenvm.memory.backend import DeviceBackend, Program, Ring, Status
from tokenvm.memory.device import DeviceArena
from tokenvm.memory.register import NullRegister, Register
from tokenvm.memory.tier import TierStore
from tokenvm.memory.transfer import TransferEngine
from tokenvm.moves import Moves
from tokenvm.residency.ledger import Ledger
from tokenvm.residency.planner import (
    Pages,
    choose_idle,
    choose_promotions,
    choose_write_behind,
    unwritten,
    unwritten_of,
)
from tokenvm.residency.policy.base import Policy
from tokenvm.residency.policy.lru import Lru
from tokenvm.residency.prefix_index import PrefixIndex
from tokenvm.residency.prefix_plan import Arrivals
from tokenvm.room import Room
from tokenvm.vocab import Answer, PageKey, Tier, UnitId
from tokenvm.watch import NoWatch, Watch, Watching

_log = logging.getLogger("tokenvm.vm")


class MemoryManager:
    """Units, their slots and their bytes. One owner thread; native threads move the bytes.

    `arena` is the device tier of `stores`. Without `ring_slots` nothing can be streamed. `policy` ranks sealed pages on
    the device, `keep_policy` indexed pages that nobody else owns, in whatever tier; least recently used if not given.
    With a `clock`, what fails below the device is answered as `Watch` says; without, it is a miss and nothing else.
    `register` is what the disk keeps for the next process, nothing if not given.
    """

    def __init__(
        self,
        backend: DeviceBackend,
        arena: DeviceArena,
        lower: Sequence[TierStore],
        ring_slots: int,
        policy: Policy[UnitId],
        keep_policy: Policy[PageKey] | None = None,
        clock: Clock | None = None,
        register: Register | None = None,
    ) -> None:
        self.backend = backend
        self.arena = arena
        self.layout = arena.layout
        self.policy = policy
        self._stores: Mapping[Tier, TierStore] = {store.tier: store for store in (arena, *lower)}
        self.ledger = Ledger({tier: store.capacity for tier, store in self._stores.items()})
        stride = self.layout.part_stride
        self._ring_region = backend.allocate(max(1, ring_slots) * stride)
        self.ring: Ring = backend.ring(self._ring_region.address, max(1, ring_slots), stride)
        self.watch: Watching = NoWatch(backend)
        if clock is not None:
            self.watch = Watch(backend, self.ledger, self._stores, clock)
        self._transfers = TransferEngine(backend, self._stores, self.ring, self.watch.copies)
        self._moves = Moves(self.ledger, self._transfers, policy, self._sweep, self.watch)
        self.index = PrefixIndex(keep_policy or Lru())
        self.room = Room(self.ledger, policy, self.index, self._moves)
        self.losses = Losses(self.ledger, self.index, self.room, self._moves, self.watch, self._sweep)
        self.keeping = Keeping(self.ledger, self.index, self.room, self._moves, register or NullRegister())
        self.frozen = Frozen(self.ledger, policy, self._moves, self.make_room, self._bring_up)
        self._stuck: tuple[int, ...] = ()  # no idle page could leave at these versions

    def new_page(self, running: Sequence[Pages]) -> UnitId:
        """Make an open page: a zero-filled device slot. What has to leave for it leaves.

        Raises:
            StorageError: nothing may leave, or it cannot be written down.
        """
        self.make_room(1, running)
        unit = self.ledger.create(Tier.DEVICE)
        try:
            self.arena.ensure(self.ledger.high_water(Tier.DEVICE))
            self.arena.fill(self.ledger.slot(unit, Tier.DEVICE))
        except BaseException:
            self.ledger.release(unit)
            raise
        return unit

    def make_room(self, slots: int, running: Sequence[Pages]) -> None:
        """Free device slots until `slots` are free; see `Room.make`."""
        self.room.make(slots, running)
        self._sweep()

    def seal(self, unit: UnitId) -> None:
        """The page is full and committed; from now on it may have copies in every tier."""
        self.ledger.seal(unit)
        self.policy.insert(unit)

    def keep(self, unit: UnitId, key: PageKey, parent: PageKey) -> None:
        """Index a sealed page that a sequence owns, unless one with that key is kept: so it outlives the sequence."""
        if self.index.add(key, parent, unit):
            self.ledger.retain(unit)
            self.keeping.named(unit)

    def forget_prefixes(self) -> None:
        """Let go of every indexed page."""
        while len(self.index):
            self.room.forget(next(iter(self.index)))
        self._sweep()

    def write_behind(self, running: Sequence[Pages]) -> None:
        """Start copying sealed pages that lie on the device alone to the next tier, at low priority.

        Idle pages make room for them there. Where that cannot be, it is put off: `make_room` writes what has to be
        written, or says why not.
        """
        self.settle()
        self.room.make_below(len(unwritten(self.ledger, running)))
        self._write(running)

    def write_idle(self, running: Sequence[Pages]) -> None:
        """Start copying idle pages down, at low priority, if the device is crowded; see `Room.idle_to_write`."""
        self._write([self.room.idle_to_write(running)])

    def write_along(self, units: Sequence[UnitId]) -> None:
        """Copy open pages down while a step fills them, each layer once `filled` says so; if that cannot be, behind."""
        self.end_along()
        self.room.make_below(len(units))
        self._moves.start_along(
            [self.ledger.begin(unit, Tier.DEVICE, tier) for unit in units if (tier := self.room.tier_below())]
        )

    def filled(self, layer: int) -> None:
        """See `Moves.filled`."""
        self._moves.filled(layer)

    def end_along(self) -> None:
        """See `Moves.end_along`."""
        self._moves.end_along()

    def promote(self, running: Sequence[Pages], displace: bool = False) -> None:
        """Start bringing streamed pages back into free device slots.

        And into those that idle pages leave at once, where some are indexed, or `displace` says that there are others.
        """
        self.settle()
        versions = self.index.version, self.ledger.version, self._moves.ended
        may_displace = (displace or self.index.idle_pages > 0) and versions != self._stuck
        if self.ledger.free(Tier.DEVICE) <= 0 and not may_displace:
            return
        chosen = choose_promotions(self.ledger.capacity(Tier.DEVICE), self.ledger, running)
        if may_displace:
            self.room.displace(len(chosen), {unit for pages in running for unit in pages})
            self.write_idle(running)
        if not self._bring_up(chosen, 0):
            self._stuck = versions

    def bring(self, prefix: Sequence[UnitId], running: Sequence[Pages], keep_free: int) -> Answer:
        """Start bringing pages of a prefix to the device, as `Arrivals.choose` says.

        IN_FLIGHT if more can come once idle pages have been written down, HIT if what can come is coming.
        """
        self.settle()
        arrivals = Arrivals.choose(prefix, keep_free, self.ledger, self.policy, running)
        needed = {unit for pages in running for unit in pages} | set(prefix)
        if arrivals.displaced:
            self.room.displace(len(arrivals.units) + keep_free, needed)
        missing = len(arrivals.units) - self._bring_up(arrivals.units, keep_free)
        self._write([unwritten_of(choose_idle(missing, self.ledger, self.policy, needed))])
        return Answer.IN_FLIGHT if missing else Answer.HIT

    def reserve(self, pages: int) -> None:
        """Make sure that `pages` pages have space below the device; StorageError where they have not."""
        disk = self._stores.get(Tier.DISK)
        if disk is not None and disk.capacity:
            beyond_host = max(0, pages - self.ledger.capacity(Tier.HOST))
            try:
                disk.ensure(min(disk.capacity, beyond_host))
            except StorageError:
                self.watch.out_of_space([Tier.DISK])
                raise
            self.watch.has_space(Tier.DISK)

    def settle(self) -> None:
        """Enter what has landed or failed meanwhile into the ledger."""
        self._moves.settle()

    def finish_first(self) -> bool:
        """Wait for the moves that started first; return whether there were any."""
        return self._moves.finish_first()

    def finish_transfers(self) -> None:
        """Wait for every move in flight."""
        while self._moves.finish_first():
            pass

    def retain(self, units: Iterable[UnitId]) -> None:
        """One more owner for each."""
        self.room.retain(units)

    def release(self, units: Sequence[UnitId]) -> None:
        """One owner less for each, the last first; copies nobody needs any more go."""
        self.room.release(units)
        self._sweep()

    def copy_page(self, source: UnitId, target: UnitId) -> None:
        """Copy the bytes of one device page into another."""
        addresses = self.addresses([source, target])
        self.backend.reading(addresses[:1])
        self.backend.writing(addresses[1:])
        copy(int(addresses[1]), int(addresses[0]), self.layout.page_bytes)

    def addresses(self, units: Sequence[UnitId]) -> NDArray[np.uint64]:
        """Where the first part of each unit's device copy lies."""
        return self.arena.addresses([self.ledger.slot(unit, Tier.DEVICE) for unit in units])

    def program(self, units: Sequence[UnitId]) -> Program:
        """Make the reads of all parts of units that have a copy below the device, layer by layer."""
        found = [self.ledger.below(unit) for unit in units]
        layers = np.arange(self.layout.layers)
        return self._transfers.program([f.tier for f in found], [f.slot for f in found], layers)

    def read_again(self, reads: Program, addresses: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Read parts whose tickets failed once more, to these addresses; return which have landed now."""
        return np.equal(self._transfers.read_again(reads, addresses).status, Status.LANDED)

    def high_water_bytes(self, tier: Tier) -> int:
        """Return the most bytes a tier ever took: of pages in memory, of reserved files on disk."""
        if tier is Tier.DISK:
            return self._stores[tier].high_water_bytes
        return self.ledger.high_water(tier) * self.layout.page_bytes

    @property
    def moved_bytes(self) -> dict[str, int]:
        """Bytes landed since birth, by direction."""
        return self._transfers.moved_bytes

    def close(self) -> None:
        """Stop all copies and give every byte back; what is kept for the next process is written down before."""
        try:
            self.keeping.close()
        finally:
            self.backend.close()
            for store in self._stores.values():
                store.close()
            self._ring_region.close()

    def _bring_up(self, units: Sequence[UnitId], keep_free: int) -> int:
        """Start copies to the device of as many pages as have a free slot there; return how many."""
        self._sweep()
        coming = units[: max(0, self.ledger.free(Tier.DEVICE) - keep_free)]
        moves = [self.ledger.begin(unit, self.ledger.find(unit).tier, Tier.DEVICE) for unit in coming]
        self._moves.start(moves)
        return len(coming)

    def _write(self, pages: Sequence[Pages]) -> None:
        chosen = choose_write_behind(self.ledger, pages)
        try:
            self._moves.start([self.ledger.begin(unit, Tier.DEVICE, tier) for unit, tier in chosen])
        except StorageError as error:
            _log.info("pages are not written behind: %s", error)

    def _sweep(self) -> None:
        """Tell the register what came and went on disk; poison what was freed, before it can be taken again."""
        self.keeping.swept()
        freed = self.ledger.drain_freed()
        if freed and self.arena.poison:
            self.arena.freed(np.unique(freed))
