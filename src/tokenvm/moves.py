"""Moves in flight: started, waited for, and entered into the ledger as landed or failed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from tokenvm.errors import StorageError
from tokenvm.memory.along import AlongBatch
from tokenvm.memory.transfer import Transfer, TransferEngine
from tokenvm.residency.ledger import Ledger
from tokenvm.residency.policy.base import Policy
from tokenvm.vocab import Answer, Move, Tier, UnitId
from tokenvm.watch import Watching

_log = logging.getLogger("tokenvm.vm")


class Moves:
    """One owner. `policy` hears who came to the device; `sweep` is called when slots may have come free.

    `watch` hears how each move ended.
    """

    def __init__(
        self,
        ledger: Ledger,
        transfers: TransferEngine,
        policy: Policy[UnitId],
        sweep: Callable[[], None],
        watch: Watching,
    ) -> None:
        self._watch = watch
        self._ledger = ledger
        self._transfers = transfers
        self._policy = policy
        self._sweep = sweep
        self.ended = 0  # transfers
        self._flying: list[Transfer] = []
        self._lowered: list[UnitId] = []  # whose copies on disk have landed since last drained
        self._along: tuple[Transfer, AlongBatch] | None = None  # what this step writes while it fills it
        self._unsure: tuple[Move, ...] = ()  # its moves: their pages may never be committed

    def start(self, moves: list[Move], urgent: bool = False) -> None:
        """Put moves in flight. A Ctrl-C at this very moment strands their slots until `close`.

        Nobody can tell then whether the copies have started, and a slot that may be written to is not free.
        """
        if not moves:
            return
        try:
            self._flying.append(self._transfers.submit(moves, urgent))
        except Exception as error:
            self._give_up(moves, error)
            raise

    def start_along(self, moves: list[Move]) -> None:
        """Prepare copies of open pages that begin layer by layer, once `filled` says so."""
        if not moves:
            return
        try:
            self._along = self._transfers.submit_along(moves)
            self._unsure = tuple(moves)
        except Exception as error:
            self._give_up(moves, error)
            if not isinstance(error, StorageError):
                raise
            _log.info("pages are not written while they fill: %s", error)

    def _give_up(self, moves: Sequence[Move], error: Exception) -> None:
        """Nothing of these moves was started."""
        for move in moves:
            self._ledger.fail(move)
        if isinstance(error, StorageError):
            self._watch.out_of_space(move.target for move in moves)

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
        stale = [move for move in unsure if self._ledger.stale(move)]
        for transfer in [flying for flying in self._flying if set(flying.moves) & set(stale)]:
            self._finish(transfer)
        for move in stale:
            if self._ledger.stale(move):
                self._ledger.drop(move.unit, move.target)

    def settle(self) -> None:
        """Enter what has landed or failed meanwhile."""
        for transfer in list(self._flying):
            if transfer.poll() is not Answer.IN_FLIGHT:
                self._finish(transfer)

    def finish_first(self) -> bool:
        """Wait for what started first; return whether there was anything."""
        if not self._flying:
            return False
        self._finish(self._flying[0])
        return True

    def finish_of(self, units: Iterable[UnitId]) -> None:
        """Wait for every move of these units."""
        wanted = set(units)
        for transfer in list(self._flying):
            if any(move.unit in wanted for move in transfer.moves):
                self._finish(transfer)

    def drain_lowered(self) -> list[UnitId]:
        """Return the units whose copies on disk have landed since last asked; they may be gone again."""
        lowered, self._lowered = self._lowered, []
        return lowered

    def _finish(self, transfer: Transfer) -> None:
        """Wait for a transfer and enter its outcome; may be done again after an interrupt in the middle."""
        failed = set(transfer.failed)
        for move in transfer.moves:
            if not self._ledger.moving(move):
                continue
            if move in failed:
                self._ledger.fail(move)
                self._watch.moved(move, failed=True)
                continue
            came = move.target is Tier.DEVICE and self._ledger.owners(move.unit) > 0
            self._ledger.land(move)
            self._watch.moved(move, failed=False)
            if move.target is Tier.DISK:
                self._lowered.append(move.unit)
            if came:
                self._policy.insert(move.unit)
        self._flying.remove(transfer)
        self.ended += 1
        self._sweep()
