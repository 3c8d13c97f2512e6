"""Frozen pages: open ones of sequences at rest, sealed for that time, so that they may leave the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenvm.moves import Moves
from tokenvm.residency.ledger import Ledger
from tokenvm.residency.planner import Pages
from tokenvm.residency.policy.base import Policy
from tokenvm.vocab import Answer, Tier, UnitId


class Frozen:
    """`make_room` and `bring_up` are those of the MemoryManager."""

    def __init__(
        self,
        ledger: Ledger,
        policy: Policy[UnitId],
        moves: Moves,
        make_room: Callable[[int, Sequence[Pages]], None],
        bring_up: Callable[[Sequence[UnitId], int], int],
    ) -> None:
        self._ledger, self._policy, self._moves = ledger, policy, moves
        self._make_room, self._bring_up = make_room, bring_up

    def freeze(self, units: Sequence[UnitId]) -> None:
        """Seal open pages for as long as nobody appends to them, so that they may leave the device."""
        for unit in units:
            if not self._ledger.sealed(unit):
                self._ledger.seal(unit)
                self._policy.insert(unit)

    def thaw(self, units: Sequence[UnitId], running: Sequence[Pages]) -> Answer:
        """Undo `freeze`: wait until the pages are on the device; other copies go. MISS if one did not come back.

        Raises:
            StorageError: there is no room for them on the device. It may be tried again.
        """
        frozen = [unit for unit in units if self._ledger.sealed(unit)]
        self._moves.finish_of(frozen)
        away = self._unseal(frozen)
        if any(self._ledger.lost(unit) for unit in away):
            return Answer.MISS
        self._make_room(len(away), running)
        self._bring_up(away, 0)
        self._moves.finish_of(away)
        return Answer.MISS if self._unseal(away) else Answer.HIT

    def _unseal(self, units: Sequence[UnitId]) -> list[UnitId]:
        """Open those that lie on the device, where nothing moves, and nowhere else from now on; return the others."""
        here = [unit for unit in units if self._ledger.resident(unit, Tier.DEVICE)]
        for unit in here:
            for tier in (Tier.HOST, Tier.DISK):
                if self._ledger.resident(unit, tier):
                    self._ledger.drop(unit, tier)
            self._ledger.unseal(unit)
            self._policy.remove(unit)
        return [unit for unit in units if self._ledger.sealed(unit)]
