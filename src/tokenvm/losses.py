"""Losses: copies below the device that cannot be read are given up, and with the last one the page."""

from __future__ import annotations

from collections.abc import Callable

from tokenvm.moves import Moves
from tokenvm.residency.ledger import Ledger
from tokenvm.residency.prefix_index import PrefixIndex
from tokenvm.room import Room
from tokenvm.vocab import Tier, UnitId
from tokenvm.watch import Watching


class Losses:
    """A page that is lost is no prefix any more; sequences that own it compute it again. `sweep`: see `Moves`."""

    def __init__(
        self,
        ledger: Ledger,
        index: PrefixIndex,
        room: Room,
        moves: Moves,
        watch: Watching,
        sweep: Callable[[], None],
    ) -> None:
        self._ledger, self._index, self._room, self._moves = ledger, index, room, moves
        self._watch, self._sweep = watch, sweep

    def lose(self, unit: UnitId) -> list[Tier]:
        """The copy that was streamed is damaged: give it up, if it was not already; return where it lay."""
        self._finish_moves()
        tiers = [tier for tier in (Tier.HOST, Tier.DISK) if self._ledger.resident(unit, tier)]
        for tier in tiers[:1]:
            slot = self._ledger.slot(unit, tier)
            self._give_up(unit, tier)
            self._watch.lost(tier, slot)
        return tiers[:1]

    def give_up(self, tier: Tier) -> None:
        """Let go of all copies in a tier below the device. No read of them may be queued."""
        self._finish_moves()
        for unit in self._ledger.units():
            if unit in self._ledger and self._ledger.resident(unit, tier):
                self._give_up(unit, tier)

    def _give_up(self, unit: UnitId, tier: Tier) -> None:
        if self._ledger.lose(unit, tier) and unit in self._index:
            self._room.forget(unit)
        self._sweep()

    def _finish_moves(self) -> None:
        while self._moves.finish_first():
            pass
