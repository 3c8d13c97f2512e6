"""MemoryManager: the one file where decisions (residency) meet bytes (memory)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tokenvm.errors import StorageError
from tokenvm.kernels.paging import copy
from tokenvm.memory.along import AlongBatch
from tokenvm.memory.backend import DeviceBackend, Program, Ring
from tokenvm.memory.device import DeviceArena
from tokenvm.memory.tier import TierStore
from tokenvm.memory.transfer import Transfer, TransferEngine
from tokenvm.residency.ledger import Ledger
from tokenvm.residency.planner import (
    Pages,
    Parting,
    Victim,
    choose_promotions,
    choose_victims,
    choose_write_behind,
)
from tokenvm.residency.policy.base import Policy
from tokenvm.vocab import Answer, Move, Tier, UnitId

_WRITE_ATTEMPTS = 3
_log = logging.getLogger("tokenvm.vm")


class MemoryManager:
    """Units, their slots and their bytes. One owner thread; native threads move the bytes.

    `arena` is the device tier of `stores`. Without `ring_slots` nothing can be streamed.
    """

    def __init__(
        self,
        backend: DeviceBackend,
        arena: DeviceArena,
        lower: Sequence[TierStore],
        ring_slots: int,
        policy: Policy,
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
        self._transfers = TransferEngine(backend, self._stores, self.ring)
        self._flying: list[Transfer] = []
        self._along: tuple[Transfer, AlongBatch] | None = None  # what this step writes while it fills it
        self._unsure: tuple[Move, ...] = ()  # its moves: their pages may never be committed
        self._promised: list[UnitId] = []

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
        """Free device slots until `slots` are free, waiting for writes where it must."""
        self.settle()
        attempts = 0
        while (short := slots - self.ledger.free(Tier.DEVICE)) > 0:
            victims = self._keep_promise(short) or choose_victims(short, self.ledger, self.policy, running)
            if not victims and self._flying:
                self._finish(self._flying[0])  # slots of pages that nobody owns come back then
                continue
            if not victims:
                raise StorageError("every page on the device is in use: raise kv_limit or lower max_num_seqs")
            failed = [self._part(victim) for victim in victims].count(Answer.MISS)
            attempts += failed
            if attempts >= _WRITE_ATTEMPTS:
                raise StorageError(
                    "pages cannot be written to disk: check the disk below nvme_path, or set another"
                )
        self._sweep()

    def foresee(self, slots: int, running: Sequence[Pages]) -> list[UnitId]:
        """Choose who leaves when the next step makes `slots` pages: of those with a copy below. It is kept to."""
        short = slots - self.ledger.free(Tier.DEVICE)
        chosen = choose_victims(short, self.ledger, self.policy, running) if short > 0 else []
        self._promised = [victim.unit for victim in chosen if victim.parting is Parting.DROP]
        return list(self._promised)

    def seal(self, unit: UnitId) -> None:
        """The page is full and committed; from now on it may have copies in every tier."""
        self.ledger.seal(unit)
        self.policy.insert(unit)

    def write_behind(self, running: Sequence[Pages]) -> None:
        """Start copying sealed pages that lie on the device alone to the next tier, at low priority.

        Where that cannot be, it is put off: `make_room` writes what has to be written, or says why not.
        """
        self.settle()
        chosen = choose_write_behind(self.ledger, running)
        try:
            self._start([self.ledger.begin(unit, Tier.DEVICE, tier) for unit, tier in chosen])
        except StorageError as error:
            _log.warning("pages are not written behind: %s", error)

    def write_along(self, units: Sequence[UnitId]) -> None:
        """Copy open pages down while a step fills them, each layer once `filled` says so; if that cannot be, behind."""
        self.end_along()
        moves = [self.ledger.begin(unit, Tier.DEVICE, tier) for unit in units if (tier := self._tier_below())]
        if not moves:
            return
        try:
            self._along = self._transfers.submit_along(moves)
            self._unsure = tuple(moves)
        except Exception as error:
            for move in moves:
                self.ledger.fail(move)
            if not isinstance(error, StorageError):
                raise
            _log.warning("pages are not written while they fill: %s", error)

    def filled(self, layer: int) -> None:
        """All that this step appends to the parts of a layer is there. A Ctrl-C in here strands slots until `close`."""
        if self._along is None:
            return
        along, self._along = self._along, None
        along[1].start(layer)
        if along[1].complete:
            self._flying.append(along[0])
        else:
            self._along = along

    def end_along(self) -> None:
        """Give up what was written along for pages that were not committed; nothing of it is in flight afterwards."""
        if self._along is not None:
            self._flying.append(self._along[0])
            self._along = None
        unsure, self._unsure = self._unsure, ()
        stale = [move for move in unsure if self.ledger.stale(move)]
        for transfer in [flying for flying in self._flying if set(flying.moves) & set(stale)]:
            self._finish(transfer)
        for move in stale:
            if self.ledger.stale(move):
                self.ledger.drop(move.unit, move.target)

    def promote(self, running: Sequence[Pages], keep_free: int = 0) -> None:
        """Start bringing streamed pages back into free device slots."""
        self.settle()
        spare = self.ledger.free(Tier.DEVICE) - keep_free
        if spare <= 0:
            return
        chosen = choose_promotions(spare, self.ledger, running)
        self._sweep()
        self._start([self.ledger.begin(unit, self.ledger.find(unit).tier, Tier.DEVICE) for unit in chosen])

    def reserve(self, pages: int) -> None:
        """Make sure that `pages` pages have space below the device; StorageError where they have not."""
        disk = self._stores.get(Tier.DISK)
        if disk is not None and disk.capacity:
            beyond_host = max(0, pages - self.ledger.capacity(Tier.HOST))
            disk.ensure(min(disk.capacity, beyond_host))

    def settle(self) -> None:
        """Enter what has landed or failed meanwhile into the ledger."""
        for transfer in list(self._flying):
            if transfer.poll() is not Answer.IN_FLIGHT:
                self._finish(transfer)

    def finish_transfers(self) -> None:
        """Wait for every move in flight."""
        while self._flying:
            self._finish(self._flying[0])

    def retain(self, units: Iterable[UnitId]) -> None:
        """One more owner for each."""
        for unit in units:
            self.ledger.retain(unit)

    def release(self, units: Iterable[UnitId]) -> None:
        """One owner less for each; copies nobody needs any more go."""
        for unit in units:
            if not self.ledger.shared(unit):
                self.policy.remove(unit)
                self._promised = [other for other in self._promised if other != unit]
            self.ledger.release(unit)
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

    def lose(self, unit: UnitId) -> None:
        """The copy that was streamed is damaged: give it up."""
        self.finish_transfers()
        streamed = next((tier for tier in (Tier.HOST, Tier.DISK) if self.ledger.resident(unit, tier)), None)
        if streamed is not None:
            self.ledger.lose(unit, streamed)

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
        """Stop all copies and give every byte back."""
        self.backend.close()
        for store in self._stores.values():
            store.close()
        self._ring_region.close()

    def _keep_promise(self, most: int) -> list[Victim]:
        """Return at most so many of those chosen before who may still leave at once; a promise is kept once."""
        promised, self._promised = self._promised[:most], []
        return [Victim(unit, Parting.DROP) for unit in promised if self.ledger.droppable(unit, Tier.DEVICE)]

    def _part(self, victim: Victim) -> Answer:
        """Let one page leave the device; HIT once it has left or its copy below is whole."""
        if victim.parting is Parting.DROP:
            self.ledger.drop(victim.unit, Tier.DEVICE)
            return Answer.HIT
        if victim.parting is Parting.DEMOTE:
            self._demote(victim.unit)
        for transfer in list(self._flying):
            if any(move.unit == victim.unit for move in transfer.moves):
                self._finish(transfer)
        return Answer.HIT if self.ledger.droppable(victim.unit, Tier.DEVICE) else Answer.MISS

    def _tier_below(self) -> Tier | None:
        return next((tier for tier in (Tier.HOST, Tier.DISK) if self.ledger.free(tier)), None)

    def _demote(self, unit: UnitId) -> None:
        tier = self._tier_below()
        if tier is None:
            raise StorageError("host and disk tiers are full: raise nvme_limit or host_memory")
        self._start([self.ledger.begin(unit, Tier.DEVICE, tier)], urgent=True)

    def _start(self, moves: list[Move], urgent: bool = False) -> None:
        """Put moves in flight. A Ctrl-C at this very moment strands their slots until `close`.

        Nobody can tell then whether the copies have started, and a slot that may be written to is not free.
        """
        if not moves:
            return
        try:
            self._flying.append(self._transfers.submit(moves, urgent))
        except Exception:
            for move in moves:
                self.ledger.fail(move)
            raise

    def _finish(self, transfer: Transfer) -> None:
        """Wait for a transfer and enter its outcome; may be done again after an interrupt in the middle."""
        failed = set(transfer.failed)
        for move in transfer.moves:
            if self.ledger.moving(move):
                (self.ledger.fail if move in failed else self.ledger.land)(move)
        self._flying.remove(transfer)
        self._sweep()

    def _sweep(self) -> None:
        """Poison what was freed, before it can be taken again."""
        freed = self.ledger.drain_freed()
        if freed and self.arena.poison:
            self.arena.freed(np.unique(freed))
