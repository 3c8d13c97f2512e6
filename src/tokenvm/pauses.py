"""Sequences at rest: none of their pages has to be on the device, not even the open one, until they go on."""

from __future__ import annotations

from collections.abc import Sequence

from tokenvm.open_pages import OpenPages
from tokenvm.residency.page_table import PageTable
from tokenvm.residency.planner import Pages
from tokenvm.vm import MemoryManager
from tokenvm.vocab import Answer, SeqId, UnitId


class Pauses:
    """Who rests. A page that a resting sequence needs is demoted like an idle one, and never let go of.

    The open page, and under a lossy KV format its raw slots, are frozen: sealed for as long as the sequence rests.
    `fallen`: sequences whose open page did not come back, with the tokens that stay valid, until they are truncated.
    """

    def __init__(self, vm: MemoryManager, table: PageTable, open_pages: OpenPages | None) -> None:
        self._vm = vm
        self._table = table
        self._open_pages = open_pages
        self.resting: set[SeqId] = set()
        self.fallen: dict[SeqId, int] = {}

    def pause(self, seq: SeqId) -> None:
        """Let a sequence rest, that has no page beyond its committed tokens; start writing its pages down."""
        self.resting.add(seq)
        frozen = self._frozen(seq)
        self._vm.frozen.freeze(frozen)
        self._vm.write_behind([self._table.pages(seq), frozen])

    def resume(self, seq: SeqId, running: Sequence[Pages]) -> None:
        """Let a sequence go on: wait until what it appends to is on the device. An open page that is lost is replaced.

        Raises:
            StorageError: there is no room on the device. The sequence rests on, and may be resumed later.
        """
        if self._vm.frozen.thaw(self._frozen(seq), running) is Answer.MISS:
            self._renew(seq, running)
        if self._open_pages is not None:
            self._open_pages.moved(self._table.open_page(seq), running)
        self.resting.discard(seq)

    def forget(self, seq: SeqId) -> None:
        """The sequence ended."""
        self.resting.discard(seq)
        self.fallen.pop(seq, None)

    def _frozen(self, seq: SeqId) -> list[UnitId]:
        units = self._table.open_page(seq)
        return units if self._open_pages is None else [*units, *self._open_pages.raw(units)]

    def _renew(self, seq: SeqId, running: Sequence[Pages]) -> None:
        """Put an empty page in the place of the open one, so that the step which reports the loss can be laid out."""
        index = self._table.length_tokens(seq) // self._table.block_tokens
        unit = self._vm.new_page(running)
        old = self._table.replace(seq, index, unit)
        self.fallen[seq] = index * self._table.block_tokens
        if self._open_pages is not None:
            self._open_pages.close([old])
        self._vm.release([old])
