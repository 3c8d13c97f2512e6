"""One step's pages, ready to be attended: resident ones in place, the rest through the staging ring, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tokenvm.arrange import Layout, Owners, Round
from tokenvm.clock import Clock
from tokenvm.memory.faults import SLOW_S
from tokenvm.open_pages import OwnPages
from tokenvm.schedule.plan import Plan, Span
from tokenvm.stream import Reads, Stream
from tokenvm.vm import MemoryManager
from tokenvm.vocab import Answer, Tier, UnitId


class Staged:
    """One step's pages, ready to be attended layer by layer. Lent by `KVCache.stage`.

    `positions`, `offsets`: of each row, its position in its sequence and in its page. `lost`: sequences with a page
    that turned out damaged, each with the tokens that stay valid; `unread`: how many such pages, or
    pages that came too late, by tier. `waits`: (begin, end) seconds spent waiting.
    `own`: under a lossy KV format, where the rows' own pages lie raw; the rounds show what is quantised.
    """

    def __init__(
        self,
        vm: MemoryManager,
        stream: Stream,
        layout: Layout,
        plan: Plan,
        block_tokens: int,
        clock: Clock,
        expected: Reads | None,
    ) -> None:
        self._vm = vm
        self._stream = stream
        self._layout = layout
        self._block_tokens = block_tokens
        self._clock = clock
        self._first = stream.begin(layout.reads, expected)
        self._parts = self._with_ring(layout)
        self._place_rows(plan.spans)
        self.lost = dict(layout.lost)
        self.unread = dict.fromkeys(Tier, 0)
        self.waits: list[tuple[float, float]] = []
        self.own: OwnPages | None = None
        self._given_up: set[UnitId] = set()  # the copy that this step reads of them

    @property
    def streamed_pages(self) -> int:
        """Pages that are not on the device."""
        return self._layout.streams

    @property
    def resident_pages(self) -> int:
        """Pages attended in place."""
        return len(self._layout.resident)

    @property
    def owners(self) -> tuple[Owners, ...]:
        """Whose each page is, in the order of the addresses that `rounds` yields."""
        return self._layout.owners

    @property
    def tiers(self) -> dict[Tier, int]:
        """How many pages are read from each tier."""
        return self._layout.tiers

    def targets(self, layer: int) -> NDArray[np.uint64]:
        """Addresses uint64 [M] of the parts that each row's token is appended to."""
        parts: NDArray[np.uint64] = self._targets[layer]
        if self.own is not None:
            self._vm.backend.writing(self.own.coded[layer])
            parts = self.own.targets(layer)
        self._vm.backend.writing(parts)
        return parts

    def rounds(self, layer: int) -> Iterator[tuple[Round, NDArray[np.uint64]]]:
        """Yield what to attend, in position order, with the addresses uint64 [P] of all parts of the layer.

        All that the step appends to the layer has been appended. A round's parts have landed when it is yielded; their
        ring slots are given back when the next one is asked for.
        """
        self._vm.filled(layer)
        self._stream.reach(layer)
        begin = released = self._first + layer * self._layout.streams
        parts = self._parts[layer]
        for chunk in self._layout.rounds:
            if chunk.landed:
                self._wait(begin, released, begin + chunk.landed)
            self._vm.backend.reading(parts[chunk.pages])
            yield chunk, parts
            if chunk.landed:
                released = begin + chunk.landed
                self._vm.ring.release(released)

    def _with_ring(self, layout: Layout) -> NDArray[np.uint64]:
        """Return the addresses of all parts, [layers, P]; streamed ones are where this step's tickets land."""
        if not layout.streams:
            return layout.parts
        parts = layout.parts.copy()
        layers = self._vm.layout.layers
        tickets = self._vm.ring.addresses(self._first, self._first + layers * layout.streams)
        parts[:, layout.streamed] = tickets.reshape(layers, layout.streams)
        return parts

    def _place_rows(self, spans: Sequence[Span]) -> None:
        """Find each row's position and the page its token goes to; such pages are open, so on the device."""
        block, counts = self._block_tokens, [span.count for span in spans]
        self.positions = np.concatenate([np.arange(span.start, span.end) for span in spans])
        self.offsets = (self.positions % block).astype(np.int32)
        lasts = np.array([(span.end - 1) // block for span in spans], np.int64)
        behind = np.repeat(lasts, counts) - self.positions // block
        pages = np.repeat(self._layout.tails, counts) - behind
        self._targets = self._layout.parts.take(pages, axis=1)

    def _wait(self, layer_begin: int, begin: int, end: int) -> None:
        started_s = self._clock.now_s()
        answer = self._vm.ring.wait(end)
        ended_s = self._clock.now_s()
        self.waits.append((started_s, ended_s))
        if ended_s - started_s > SLOW_S:
            self.unread |= self._layout.tiers
            self._vm.watch.slow(tier for tier, pages in self._layout.tiers.items() if pages)
        if answer is not Answer.HIT:
            self._note_lost(self._failed_again(begin, end) - np.uint64(layer_begin))

    def _failed_again(self, begin: int, end: int) -> NDArray[np.uint64]:
        """Return the tickets whose parts cannot be read, after they were tried again; none has been released."""
        ring, program = self._vm.ring, self._layout.reads.program
        tickets, statuses = ring.failed(begin, end), ring.statuses(begin, end)
        rows = program.rows((tickets - np.uint64(self._first)).astype(np.int64))
        self._vm.watch.note(rows.kind, statuses)
        addresses = np.concatenate([ring.addresses(t, t + 1) for t in tickets.tolist()])
        return tickets[~self._vm.read_again(rows, addresses)]

    def _note_lost(self, ordinals: NDArray[np.uint64]) -> None:
        streamed = np.flatnonzero(self._layout.streamed)
        for page in streamed[ordinals.astype(np.int64)].tolist():
            owners = self._layout.owners[page]
            valid = owners.index * self._block_tokens
            for seq in owners.seqs:
                self.lost[seq] = min(valid, self.lost.get(seq, valid))
            unit = self._layout.units[page]
            if unit in self._given_up:
                continue  # another layer of the same copy
            self._given_up.add(unit)
            for tier in self._vm.losses.lose(unit):
                self.unread[tier] += 1
