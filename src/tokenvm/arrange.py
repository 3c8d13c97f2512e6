"""The order of a step: its pages, where they lie, what is streamed, and the rounds they are attended in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tokenvm.memory.backend import Program
from tokenvm.schedule.plan import Span
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
class Reads:
    """The parts that a step streams: of these units, in this order, layer by layer."""

    units: tuple[UnitId, ...]
    program: Program

    @classmethod
    def of(cls, units: Sequence[UnitId], vm: MemoryManager) -> Self:
        """Read each unit from its fastest copy below the device."""
        return cls(tuple(units), vm.program(units))

    def same(self, other: Reads) -> bool:
        """Whether the other reads the same bytes from the same places."""
        ours, theirs = self.program, other.program
        return self.units == other.units and all(
            np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ("fd", "place", "checksum")
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """The pages of one step in the order they are attended; the same for every layer.

    `parts` uint64 [layers, P] are addresses of parts, 0 where `streamed` bool [P] says that a page is elsewhere than on
    the device; `resident` are the units of the others. `tails` int64 [S] says where each span's last page stands.
    """

    units: tuple[UnitId, ...]
    owners: tuple[tuple[SeqId, int], ...]  # of each page: its sequence and its index in it
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
    tails: list[int] = []
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
        tails.append(len(units) - 1)
        row += span.count
    draft.close_round()
    here = np.array(on_device, np.bool_)
    resident_units = tuple(unit for unit, stays in zip(units, on_device, strict=True) if stays)
    reads = Reads.of([unit for unit, stays in zip(units, on_device, strict=True) if not stays], vm)
    return Layout(
        units=tuple(units),
        owners=tuple(owners),
        tiers=tiers,
        parts=_addresses(vm, resident_units, here),
        streamed=~here,
        resident=resident_units,
        tails=np.array(tails, np.int64),
        rounds=tuple(draft.rounds),
        reads=reads,
        lost=lost,
    )


def _addresses(
    vm: MemoryManager, resident: Sequence[UnitId], on_device: NDArray[np.bool_]
) -> NDArray[np.uint64]:
    """[layers, P]: where each part lies, 0 for those that are streamed."""
    layers = np.arange(vm.layout.layers, dtype=np.uint64)[:, None] * np.uint64(vm.layout.part_stride)
    parts = np.zeros((vm.layout.layers, len(on_device)), np.uint64)
    parts[:, on_device] = vm.addresses(resident)[None, :] + layers
    return parts
