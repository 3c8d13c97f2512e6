"""Watch: what goes wrong below the device is counted, logged once per kind, and answered by leaving the tier alone."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenvm.clock import Clock
from tokenvm.errors import StorageError
from tokenvm.memory.backend import CopyEngine, DeviceBackend
from tokenvm.memory.faults import FAULT_OF, TIER_OF, Fault
from tokenvm.memory.probe import Probe
from tokenvm.memory.retry import RetryingCopies
from tokenvm.memory.tier import TierStore
from tokenvm.residency.health import Condition, Health
from tokenvm.residency.ledger import Ledger
from tokenvm.vocab import Answer, Move, SlotId, Tier

LOWER: Final = (Tier.HOST, Tier.DISK)
_READS, _WRITES = False, True
_log = logging.getLogger("tokenvm.tiers")


class Watching(Protocol):
    """Who hears how copies below the device fare."""

    @property
    def copies(self) -> CopyEngine:
        """The engine that copies are to be submitted to."""
        ...

    def note(self, kinds: NDArray[np.uint8], statuses: NDArray[np.uint8]) -> None:
        """Hear of copies that failed."""
        ...

    def slow(self, tiers: Iterable[Tier]) -> None:
        """Hear that reads from one of these tiers were waited for longer than `SLOW_S`."""
        ...

    def moved(self, move: Move, *, failed: bool) -> None:
        """Hear how a move ended; the ledger knows already."""
        ...

    def streamed(self, tier: Tier, pages: int) -> None:
        """Hear that pages were read from a tier in place."""
        ...

    def lost(self, tier: Tier, slot: SlotId) -> None:
        """Hear that a page's copy was given up because it could not be read. Its slot is free."""
        ...

    def out_of_space(self, tiers: Iterable[Tier]) -> None:
        """Hear that a tier could not make space."""
        ...

    def has_space(self, tier: Tier) -> None:
        """Hear that a tier made all the space it was asked for."""
        ...

    def tick(self) -> list[Tier]:
        """Let time pass; return tiers that cannot be read: what lies there has to be given up."""
        ...

    @property
    def mends(self) -> bool:
        """Whether a tier is left alone now that may be used again later."""
        ...

    def as_dict(self, tier: Tier) -> dict[str, Any]:
        """Return what is known of a tier as plain values."""
        ...


class NoWatch:
    """Nobody hears: a copy that fails is a miss and nothing else."""

    mends = False

    def __init__(self, backend: DeviceBackend) -> None:
        self.copies = backend.copies()

    def note(self, kinds: NDArray[np.uint8], statuses: NDArray[np.uint8]) -> None:
        """See `Watching.note`."""

    def slow(self, tiers: Iterable[Tier]) -> None:
        """See `Watching.slow`."""

    def moved(self, move: Move, *, failed: bool) -> None:
        """See `Watching.moved`."""

    def streamed(self, tier: Tier, pages: int) -> None:
        """See `Watching.streamed`."""

    def lost(self, tier: Tier, slot: SlotId) -> None:
        """See `Watching.lost`."""

    def out_of_space(self, tiers: Iterable[Tier]) -> None:
        """See `Watching.out_of_space`."""

    def has_space(self, tier: Tier) -> None:
        """See `Watching.has_space`."""

    def tick(self) -> list[Tier]:
        """See `Watching.tick`."""
        return []

    def as_dict(self, tier: Tier) -> dict[str, Any]:
        """See `Watching.as_dict`."""
        return {}


class Watch:
    """Watches host and disk. Copies that fail in passing are tried again; a slot that fails is retired for a while.

    A tier whose reads or writes fail again and again is closed, and opened again once a trial of it has passed; one
    that has no more space keeps to what it has until it has been able to grow. `clock` times the rests.
    """

    def __init__(
        self, backend: DeviceBackend, ledger: Ledger, stores: Mapping[Tier, TierStore], clock: Clock
    ) -> None:
        self.copies: CopyEngine = RetryingCopies(backend.copies(), clock, self.note)
        self._backend, self._ledger, self._stores, self._clock = backend, ledger, stores, clock
        self._faults: dict[Tier, Counter[Fault]] = {tier: Counter() for tier in LOWER}
        self._health = {(tier, way): Health() for tier in LOWER for way in (_READS, _WRITES)}
        self._space = {tier: Health() for tier in LOWER}
        self._probes: dict[Tier, Probe] = {}
        self._unreadable: set[Tier] = set()

    def note(self, kinds: NDArray[np.uint8], statuses: NDArray[np.uint8]) -> None:
        """See `Watching.note`."""
        for kind, status in zip(kinds.tolist(), statuses.tolist(), strict=True):
            if status in FAULT_OF:
                self._count(TIER_OF[kind], FAULT_OF[status])

    def slow(self, tiers: Iterable[Tier]) -> None:
        """See `Watching.slow`."""
        for tier in set(tiers) & set(LOWER):
            self._count(tier, Fault.SLOW)
            self._blame(tier, _READS)

    def moved(self, move: Move, *, failed: bool) -> None:
        """See `Watching.moved`."""
        way = move.target is not Tier.DEVICE
        tier = move.target if way else move.source
        if failed and way:
            self._ledger.pool(tier).retire(move.target_slot)
        if failed:
            self._blame(tier, way)
        else:
            self._health[tier, way].hear_good(1)

    def streamed(self, tier: Tier, pages: int) -> None:
        """See `Watching.streamed`."""
        if tier is not Tier.DEVICE and pages > 0:
            self._health[tier, _READS].hear_good(pages)

    def lost(self, tier: Tier, slot: SlotId) -> None:
        """See `Watching.lost`."""
        self._ledger.pool(tier).retire(slot)
        self._blame(tier, _READS)

    def out_of_space(self, tiers: Iterable[Tier]) -> None:
        """See `Watching.out_of_space`."""
        for tier in set(tiers) & set(LOWER):
            self._count(tier, Fault.NO_SPACE)
            self._ledger.pool(tier).bound = self._stores[tier].ensured
            self._space[tier].switch_off(self._clock.now_s())

    def has_space(self, tier: Tier) -> None:
        """See `Watching.has_space`."""
        pool = self._ledger.pool(tier)
        if self._stores[tier].ensured > pool.bound:
            pool.bound = pool.capacity
            self._space[tier].condition = Condition.ON

    def tick(self) -> list[Tier]:
        """See `Watching.tick`."""
        now_s = self._clock.now_s()
        for tier in LOWER:
            if self._space[tier].tick(now_s) is Condition.TRIAL:
                self._grow(tier, now_s)
            conditions = [self._health[tier, way].tick(now_s) for way in (_READS, _WRITES)]
            if Condition.TRIAL in conditions and Condition.OFF not in conditions:
                self._try(tier, now_s)
        given_up, self._unreadable = sorted(self._unreadable), set()
        return given_up

    @property
    def mends(self) -> bool:
        """See `Watching.mends`."""
        resting = [*self._health.values(), *self._space.values()]
        return any(health.condition is not Condition.ON for health in resting)

    def as_dict(self, tier: Tier) -> dict[str, Any]:
        """See `Watching.as_dict`."""
        pool = self._ledger.pool(tier)
        return {
            "faults": {fault.value: self._faults[tier][fault] for fault in Fault},
            "condition": self._condition(tier).value,
            "switched_off": sum(self._health[tier, way].switched_off for way in (_READS, _WRITES)),
            "retired_slots": pool.retired,
            "usable_slots": pool.usable,
        }

    def _condition(self, tier: Tier) -> Condition:
        conditions = [self._health[tier, way].condition for way in (_READS, _WRITES)]
        return next((one for one in conditions if one is not Condition.ON), Condition.ON)

    def _count(self, tier: Tier, fault: Fault) -> None:
        self._faults[tier][fault] += 1
        if self._faults[tier][fault] == 1:
            _log.warning(
                "%s tier: %s. No token is wrong because of it; from now on such faults are only counted, in stats()",
                tier.name.lower(),
                fault.value.replace("_", " "),
            )

    def _blame(self, tier: Tier, way: bool) -> None:
        """Enter the failure of a page; close a tier that has had too many."""
        health = self._health[tier, way]
        before = health.condition
        if before is Condition.ON and health.hear_failure(self._clock.now_s()) is Condition.OFF:
            self._ledger.pool(tier).closed = True
            if way is _READS:
                self._unreadable.add(tier)
            _log.warning(
                "%s tier: switched off after repeated failures to %s; it is tried again in %.0f s",
                tier.name.lower(),
                "write" if way else "read",
                health.until_s - self._clock.now_s(),
            )

    def _grow(self, tier: Tier, now_s: float) -> None:
        """See whether there is space again for one slot more."""
        pool = self._ledger.pool(tier)
        try:
            self._stores[tier].ensure(min(pool.capacity, pool.bound + 1))
        except StorageError:
            self._space[tier].tried(passed=False, now_s=now_s)
        else:
            self._space[tier].tried(passed=True, now_s=now_s)
            self.has_space(tier)

    def _try(self, tier: Tier, now_s: float) -> None:
        """Start a trial of a tier, or look how it goes."""
        answer = Answer.HIT
        try:
            if tier not in self._probes and (slot := self._spare_slot(tier)) is not None:
                self._stores[tier].ensure(slot + 1)
                self._probes[tier] = Probe(self._backend, self._stores[tier], slot)
            if tier in self._probes:
                answer = self._probes[tier].poll()
        except StorageError:
            answer = Answer.MISS
        if answer is not Answer.IN_FLIGHT:
            self._probes.pop(tier, None)
            self._enter_trial(tier, passed=answer is Answer.HIT, now_s=now_s)

    def _spare_slot(self, tier: Tier) -> SlotId | None:
        """Return a slot that nobody can take while the tier is closed, None if all are in use."""
        pool = self._ledger.pool(tier)
        pool.closed = False
        slot = pool.take() if pool.free else None
        if slot is not None:
            pool.give(slot)
        pool.closed = True
        return slot

    def _enter_trial(self, tier: Tier, *, passed: bool, now_s: float) -> None:
        for way in (_READS, _WRITES):
            if self._health[tier, way].condition is Condition.TRIAL:
                self._health[tier, way].tried(passed=passed, now_s=now_s)
        if passed:
            self._ledger.pool(tier).closed = False
            _log.warning("%s tier: switched on again", tier.name.lower())
