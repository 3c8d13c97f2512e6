"""What one step reads and where: resident pages in place, the rest through the staging ring, in position order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tokenvm.clock import Clock
from tokenvm.memory.backend import Program
from tokenvm.open_pages import OwnPages
from tokenvm.schedule.plan import Plan, Span
from tokenvm.vm import MemoryManager
from tokenvm.vocab import Answer, SeqId, Tier, UnitId


@dataclass(frozen=True, slots=True)
class Round:
    """Pages attended in one kernel call. `landed`: how many of the layer's streamed parts it needs, counted from 0.

    `segments` int32 [S, 4] and `first_page` int32 [S] are as `kernels.attention.attend` wants them; their page indices
    count from the layout's first page. `pages` is the range of those indices.
    """

    segments: NDArray[np.int32]
    first_page: NDArray[np.int32]
    landed: int
    pages: slice


@dataclass(frozen=True, slots=True)
class Layout:
    """The pages of one step in the order they are attended; the same for every layer.

    `bases` uint64 [P] are addresses of whole pages, 0 where `streamed` bool [P] says that a page is not on the device.
    """

    units: tuple[UnitId, ...]
    owners: tuple[tuple[SeqId, int], ...]  # of each page: its sequence and its index in it
    tiers: dict[Tier, int]  # how many of the pages are read from each tier
    bases: NDArray[np.uint64]
    streamed: NDArray[np.bool_]
    rounds: tuple[Round, ...]
    program: Program
    lost: dict[
        SeqId, int
    ]  # sequences with a page that was lost before this step, with the tokens that stay valid

    @property
    def streams(self) -> int:
        """How many parts a layer streams."""
        return int(self.streamed.sum())


@dataclass(slots=True)
class _Draft:
    """A layout in the making."""

    limit: int  # streamed parts a round may wait for
    rounds: list[Round] = field(default_factory=list)
    segments: list[tuple[int, int, int, int]] = field(default_factory=list)
    first_pages: list[int] = field(default_factory=list)
    count: int = 0
    streamed: int = 0
    begun: int = 0  # first page of the round in the making
    waited: int = 0  # streamed parts of the rounds that are done

    def page(self, rows: tuple[int, int], index: int, streamed: bool) -> None:
        """Add the `index`-th page of the sequence that owns these rows."""
        if streamed and self.streamed - self.waited >= self.limit:
            self.close_round()
        last = self.segments[-1] if self.segments else None
        if last and last[:2] == rows and self.first_pages[-1] + last[3] != index:
            self.close_round()  # a row stands in one segment of a round
            last = None
        if last and last[:2] == rows:
            self.segments[-1] = (*rows, last[2], last[3] + 1)
        else:
            self.segments.append((*rows, self.count, 1))
            self.first_pages.append(index)
        self.count += 1
        self.streamed += streamed

    def close_round(self) -> None:
        """End the round in the making, if it has pages."""
        if not self.segments:
            return
        landed = self.streamed if self.streamed > self.waited else 0
        segments = np.array(self.segments, np.int32)
        first = np.array(self.first_pages, np.int32)
        self.rounds.append(Round(segments, first, landed, slice(self.begun, self.count)))
        self.segments, self.first_pages = [], []
        self.begun, self.waited = self.count, self.streamed


def lay_out(
    spans: Sequence[Span], pages: Sequence[Sequence[UnitId]], vm: MemoryManager, block_tokens: int
) -> Layout:
    """Arrange the pages of every span; what is not on the device is streamed from the fastest copy below."""
    draft = _Draft(limit=max(1, vm.ring.slots // 3))
    units: list[UnitId] = []
    owners: list[tuple[SeqId, int]] = []
    on_device: list[bool] = []
    tiers = dict.fromkeys(Tier, 0)
    lost: dict[SeqId, int] = {}
    row = 0
    for span, sequence_pages in zip(spans, pages, strict=True):
        for index, unit in enumerate(sequence_pages):
            found = vm.ledger.find(unit)
            if found.answer is Answer.MISS:
                lost.setdefault(span.seq, index * block_tokens)
                continue
            resident = found.tier is Tier.DEVICE
            tiers[found.tier] += 1
            draft.page((row, row + span.count), index, not resident)
            units.append(unit)
            owners.append((span.seq, index))
            on_device.append(resident)
        row += span.count
    draft.close_round()
    streamed = ~np.array(on_device, np.bool_)
    bases = np.zeros(len(units), np.uint64)
    bases[~streamed] = vm.addresses([unit for unit, here in zip(units, on_device, strict=True) if here])
    program = vm.program([unit for unit, here in zip(units, on_device, strict=True) if not here])
    return Layout(tuple(units), tuple(owners), tiers, bases, streamed, tuple(draft.rounds), program, lost)


class Stream:
    """Feeds layouts through the ring: this step's parts and, ahead of time, those of a next step just like it.

    `ahead`: how many layers early parts are read, 0 for not before they are needed, None for as far as the ring goes.
    """

    def __init__(self, vm: MemoryManager, ahead: int | None = None) -> None:
        self._vm = vm
        self._ahead = ahead
        self._layout: Layout | None = None
        self._queued: tuple[Layout, int] | None = None
        self._layers_submitted = 0

    def begin(self, layout: Layout, repeats: bool) -> int:
        """Start this step's reads, or go on with those queued; return the first ticket. `repeats`: queue one more."""
        if self._queued is not None and self._queued[0] is layout:
            first = self._queued[1]
        else:
            self.cancel()
            first = self._submit(layout)
        self._layout, self._queued = layout, None
        if repeats and layout.streams and self._ahead is None:
            self._queued = layout, self._vm.ring.submit(layout.program)
        return first

    def reach(self, layer: int) -> None:
        """Layer `layer` is about to be attended: submit what may be read by now."""
        layout = self._layout
        assert layout is not None, "Stream.reach before begin"
        if self._ahead is None or not layout.streams:
            return
        end = min(self._vm.layout.layers, layer + 1 + self._ahead)
        while self._layers_submitted < end:
            self._vm.ring.submit(_layer_of(layout, self._layers_submitted))
            self._layers_submitted += 1

    def cancel(self) -> None:
        """Drop every read that nobody will wait for."""
        if self._layout is not None and self._layout.streams:
            self._vm.ring.cancel()
        self._layout = self._queued = None

    def _submit(self, layout: Layout) -> int:
        if not layout.streams:
            return 0
        if self._ahead is None:
            return self._vm.ring.submit(layout.program)
        self._layers_submitted = 1
        return self._vm.ring.submit(_layer_of(layout, 0))


def _layer_of(layout: Layout, layer: int) -> Program:
    part = slice(layer * layout.streams, (layer + 1) * layout.streams)
    return layout.program.rows(part)


class Staged:
    """One step's pages, ready to be attended layer by layer. Lent by `KVCache.stage`.

    `positions`, `offsets`: of each row, its position in its sequence and in its page. `lost`: sequences with a page
    that turned out damaged, each with the tokens that stay valid. `waits`: (begin, end) seconds spent waiting.
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
        repeats: bool,
    ) -> None:
        spans = plan.spans
        self._vm = vm
        self._stream = stream
        self._layout = layout
        self._block_tokens = block_tokens
        self._clock = clock
        self._first = stream.begin(layout, repeats)
        self.positions = np.concatenate([np.arange(span.start, span.end) for span in spans])
        self.offsets = (self.positions % block_tokens).astype(np.int32)
        self._targets = self._append_bases(spans)
        self.lost = dict(layout.lost)
        self.waits: list[tuple[float, float]] = []
        self.own: OwnPages | None = None

    @property
    def streamed_pages(self) -> int:
        """Pages that are not on the device."""
        return self._layout.streams

    @property
    def resident_pages(self) -> int:
        """Pages attended in place."""
        return len(self._layout.units) - self._layout.streams

    @property
    def tiers(self) -> dict[Tier, int]:
        """How many pages are read from each tier."""
        return self._layout.tiers

    def targets(self, layer: int) -> NDArray[np.uint64]:
        """Addresses uint64 [M] of the parts that each row's token is appended to."""
        if self.own is not None:
            self._vm.backend.writing(self.own.coded[layer])
            parts = self.own.targets(layer)
        else:
            parts = self._targets + np.uint64(layer * self._vm.layout.part_stride)
        self._vm.backend.writing(parts)
        return parts

    def rounds(self, layer: int) -> Iterator[tuple[Round, NDArray[np.uint64]]]:
        """Yield what to attend, in position order, with the addresses uint64 [P] of all parts of the layer.

        A round's parts have landed when it is yielded; their ring slots are given back when the next one is asked for.
        """
        self._stream.reach(layer)
        begin = self._first + layer * self._layout.streams
        parts = self._addresses(layer, begin)
        for chunk in self._layout.rounds:
            if chunk.landed:
                self._wait(begin, begin + chunk.landed)
            self._vm.backend.reading(parts[chunk.pages])
            yield chunk, parts
            if chunk.landed:
                self._vm.ring.release(begin + chunk.landed)

    def _addresses(self, layer: int, begin: int) -> NDArray[np.uint64]:
        layout = self._layout
        parts = layout.bases + np.uint64(layer * self._vm.layout.part_stride)
        if layout.streams:
            parts[layout.streamed] = self._vm.ring.addresses(begin, begin + layout.streams)
        return parts

    def _wait(self, begin: int, end: int) -> None:
        started_s = self._clock.now_s()
        answer = self._vm.ring.wait(end)
        self.waits.append((started_s, self._clock.now_s()))
        if answer is not Answer.HIT:
            self._note_lost(self._vm.ring.failed(begin, end) - np.uint64(begin))

    def _note_lost(self, ordinals: NDArray[np.uint64]) -> None:
        streamed = np.flatnonzero(self._layout.streamed)
        for page in streamed[ordinals.astype(np.int64)].tolist():
            seq, index = self._layout.owners[page]
            valid = index * self._block_tokens
            self.lost[seq] = min(valid, self.lost.get(seq, valid))
            self._vm.lose(self._layout.units[page])

    def _append_bases(self, spans: Sequence[Span]) -> NDArray[np.uint64]:
        """Of each row, the address of the page its token goes to; such pages are open, so on the device."""
        at = {owner: page for page, owner in enumerate(self._layout.owners)}
        pages = [
            np.uint64(self._layout.bases[at[span.seq, position // self._block_tokens]])
            for span in spans
            for position in range(span.start, span.end)
        ]
        return np.array(pages, np.uint64)
