"""The order of a step: its pages, where they lie, what is streamed, and the rounds they are attended in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from tokenvm.residency.sharing import runs_alone, runs_of
from tokenvm.residency.unit import Found
from tokenvm.schedule.plan import Span
from tokenvm.stream import Reads
from tokenvm.vm import MemoryManager
from tokenvm.vocab import Answer, SeqId, Tier, UnitId


@dataclass(frozen=True, slots=True)
class Round:
    """Pages attended in one kernel call. `landed`: how many of the layer's streamed parts it needs, counted from 0.

    `segments` int32 [S, 4] and `first_page` int32 [S] are as `kernels.attention.attend` wants them; their page indices
    count from the layout's first page. `pages` is the range of those indices. A segment holds the rows of all sequences
    that share its pages.
    """

    segments: NDArray[np.int32]
    first_page: NDArray[np.int32]
    landed: int
    pages: slice


@dataclass(frozen=True, slots=True)
class Owners:
    """Whose a page is, and its index in every one of them."""

    seqs: tuple[SeqId, ...]
    index: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The pages of one step in the order they are attended; the same for every layer.

    Pages that neighbouring spans have in common stand here once. `parts` uint64 [layers, P] are addresses of parts, 0
    where `streamed` bool [P] says that a page is elsewhere than on the device; `resident` are the units of the others.
    `tails` int64 [S] says where each span's last page stands.
    """

    units: tuple[UnitId, ...]
    owners: tuple[Owners, ...]
    tiers: dict[Tier, int]  # how many of the pages are read from each tier
    parts: NDArray[np.uint64]
    streamed: NDArray[np.bool_]
    resident: tuple[UnitId, ...]
    tails: NDArray[np.int64]
    rounds: tuple[Round, ...]
    reads: Reads
    lost: dict[
        SeqId, int
    ]  # sequences with a page that was lost before this step, with the tokens that stay valid

    @property
    def streams(self) -> int:
        """How many parts a layer streams."""
        return len(self.reads.units)


@dataclass(slots=True)
class _Draft:
    """A layout in the making."""

    limit: int  # streamed parts a round may wait for
    rounds: list[Round] = field(default_factory=list)
    segments: list[tuple[int, int, int, int]] = field(default_factory=list)
    first_pages: list[int] = field(default_factory=list)
    units: list[UnitId] = field(default_factory=list)
    owners: list[Owners] = field(default_factory=list)
    streamed: list[bool] = field(default_factory=list)
    tiers: dict[Tier, int] = field(default_factory=lambda: dict.fromkeys(Tier, 0))
    lost: dict[SeqId, int] = field(default_factory=dict)
    streams: int = 0
    begun: int = 0  # first page of the round in the making
    waited: int = 0  # streamed parts of the rounds that are done

    def place(
        self, rows: tuple[int, int], owners: Owners, unit: UnitId, found: Found, block_tokens: int
    ) -> None:
        """Add a page that these rows attend, from where it was found; those of one row come in position order.

        One that was lost is left out, and its owners keep the tokens before it.
        """
        if found.answer is Answer.MISS:
            for seq in owners.seqs:
                self.lost.setdefault(seq, owners.index * block_tokens)
            return
        self.tiers[found.tier] += 1
        self._page(rows, owners, unit, streamed=found.tier is not Tier.DEVICE)

    def _page(self, rows: tuple[int, int], owners: Owners, unit: UnitId, streamed: bool) -> None:
        if streamed and self.streams - self.waited >= self.limit:
            self.close_round()
        last = self.segments[-1] if self.segments else None
        if last and last[:2] == rows and self.first_pages[-1] + last[3] == owners.index:
            self.segments[-1] = (*rows, last[2], last[3] + 1)
        else:
            self.segments.append((*rows, len(self.units), 1))
            self.first_pages.append(owners.index)
        self.units.append(unit)
        self.owners.append(owners)
        self.streamed.append(streamed)
        self.streams += streamed

    def close_round(self) -> None:
        """End the round in the making, if it has pages."""
        if not self.segments:
            return
        landed = self.streams if self.streams > self.waited else 0
        segments = np.array(self.segments, np.int32)
        first = np.array(self.first_pages, np.int32)
        self.rounds.append(Round(segments, first, landed, slice(self.begun, len(self.units))))
        self.segments, self.first_pages = [], []
        self.begun, self.waited = len(self.units), self.streams


def lay_out(
    spans: Sequence[Span],
    pages: Sequence[list[UnitId]],
    vm: MemoryManager,
    block_tokens: int,
    *,
    shared: bool = True,
) -> Layout:
    """Arrange the pages of every span; what is not on the device is streamed from the fastest copy below.

    With `shared`, leading pages that neighbouring spans have in common are attended by the rows of all of them at once,
    level by level.
    """
    draft = _Draft(limit=max(1, vm.ring.slots // 3))
    tails = np.zeros(len(spans), np.int64)
    borders = [0, *accumulate(span.count for span in spans)]
    for run in runs_of(pages) if shared else runs_alone(pages):
        rows, seqs = (borders[run.begin], borders[run.end]), tuple(s.seq for s in spans[run.begin : run.end])
        for index in range(run.first_page, run.first_page + run.page_count):
            unit = pages[run.begin][index]
            draft.place(rows, Owners(seqs, index), unit, vm.ledger.find(unit), block_tokens)
        tails[run.begin : run.end] = len(draft.units) - 1
    draft.close_round()
    streamed = np.array(draft.streamed, np.bool_)
    resident = tuple(unit for unit, out in zip(draft.units, draft.streamed, strict=True) if not out)
    return Layout(
        units=tuple(draft.units),
        owners=tuple(draft.owners),
        tiers=draft.tiers,
        parts=_addresses(vm, resident, ~streamed),
        streamed=streamed,
        resident=resident,
        tails=tails,
        rounds=tuple(draft.rounds),
        reads=Reads.of([unit for unit, out in zip(draft.units, draft.streamed, strict=True) if out], vm),
        lost=draft.lost,
    )


def _addresses(
    vm: MemoryManager, resident: Sequence[UnitId], on_device: NDArray[np.bool_]
) -> NDArray[np.uint64]:
    """[layers, P]: where each part lies, 0 for those that are streamed."""
    layers = np.arange(vm.layout.layers, dtype=np.uint64)[:, None] * np.uint64(vm.layout.part_stride)
    parts = np.zeros((vm.layout.layers, len(on_device)), np.uint64)
    parts[:, on_device] = vm.addresses(resident)[None, :] + layers
    return parts
