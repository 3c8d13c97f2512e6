"""Under a lossy KV format: where the raw keys and values lie of pages that are not sealed yet.

docs/decisions/0008-lossy-kv-is-content.md says which rows read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenvm.kernels.paging import PartGeometry
from tokenvm.memory.raw_layout import RawLayout
from tokenvm.schedule.plan import Span
from tokenvm.vm import MemoryManager
from tokenvm.vocab import SeqId, UnitId

Pages = Sequence[UnitId]


@dataclass(frozen=True, slots=True)
class OwnPages:
    """The pages that the rows of a step stand in, and where their raw parts lie.

    `segments` int32 [P, 4] and `first_page` int32 [P] show each row its own page, as `kernels.attention.attend` wants
    them. `parts` uint64 [layers, P] are raw parts; `page_of_row` int64 [M] says which page a row is appended to.
    `full` int64 [F] are the pages that the step fills, `coded` uint64 [layers, F] where they go quantised.
    """

    segments: NDArray[np.int32]
    first_page: NDArray[np.int32]
    parts: NDArray[np.uint64]
    page_of_row: NDArray[np.int64]
    full: NDArray[np.int64]
    coded: NDArray[np.uint64]

    def targets(self, layer: int) -> NDArray[np.uint64]:
        """Addresses uint64 [M] of the raw parts that each row's token is appended to."""
        parts: NDArray[np.uint64] = self.parts[layer]
        return parts[self.page_of_row]


class OpenPages:
    """Raw slots of open pages, beside their own, and a buffer for pages that begin and end within one step.

    `max_rows` is the most rows of a step. One owner, which calls `arrange` once a step, before places change.
    """

    def __init__(self, vm: MemoryManager, geometry: PartGeometry, max_rows: int) -> None:
        self._vm = vm
        self._block_tokens = geometry.block_tokens
        self._layout = RawLayout(vm.layout, geometry.raw.part_bytes)
        layers = range(vm.layout.layers)
        self._slot_of = np.array([self._layout.slot_of(layer) for layer in layers])
        self._offset_of = np.array([self._layout.offset_of(layer) for layer in layers], np.uint64)
        self._part_bytes = geometry.raw.part_bytes
        self._passing = vm.backend.allocate(max(1, passing_bytes(geometry, max_rows)))
        self._raw: dict[UnitId, list[UnitId]] = {}
        self._version = 0
        self._kept: OwnPages | None = None
        self._kept_key: tuple[object, ...] = ()

    @property
    def slots(self) -> int:
        """Slots that an open page takes beside its own."""
        return self._layout.slots

    def raw(self, units: Iterable[UnitId]) -> list[UnitId]:
        """Return the raw slots of these pages."""
        return [raw for unit in units for raw in self._raw.get(unit, ())]

    def moved(self, units: Iterable[UnitId], running: Sequence[Pages]) -> None:
        """Raw slots of these open pages may lie elsewhere now; a page that has none gets some.

        Raises StorageError where nothing may leave the device for them.
        """
        self._version += 1
        for unit in units:
            if unit not in self._raw:
                self._take(unit, running)

    def open(self, span: Span, pages: Pages, running: Sequence[Pages]) -> None:
        """Give the page that stays open after this span its raw slots; take back what a failed step left behind.

        `pages` are the sequence's own. Raises StorageError where nothing may leave the device for it.
        """
        block = self._block_tokens
        self.close(pages[-(-span.start // block) :])
        if span.end % block and pages[span.end // block] not in self._raw:
            self._take(pages[span.end // block], running)

    def close(self, units: Iterable[UnitId]) -> None:
        """These pages are sealed or gone: their raw slots are free, where they have any."""
        for unit in units:
            raw = self._raw.pop(unit, None)
            if raw is not None:
                self._version += 1
                self._vm.release(raw)

    def copy(self, source: UnitId, target: UnitId, running: Sequence[Pages]) -> None:
        """Make the raw bytes of an open page those of another one as well."""
        self._take(target, running)
        for from_unit, to_unit in zip(self._raw[source], self._raw[target], strict=True):
            self._vm.copy_page(from_unit, to_unit)

    def arrange(self, spans: Sequence[Span], pages: Sequence[Pages]) -> OwnPages:
        """Say where the rows of a step find and leave raw bytes; `pages` are those of each span's sequence."""
        key = (self._version, *(self._shape_of(span) for span in spans))
        if self._kept is None or key != self._kept_key:
            self._kept, self._kept_key = self._arranged(spans, pages), key
        return self._kept

    def free(self) -> None:
        """Give the buffer back. The slots are the ledger's."""
        self._passing.close()

    def _take(self, unit: UnitId, running: Sequence[Pages]) -> None:
        taken: list[UnitId] = []
        try:
            for _ in range(self._layout.slots):
                taken.append(self._vm.new_page(running))
        except BaseException:
            self._vm.release(taken)
            raise
        self._raw[unit] = taken
        self._version += 1

    def _shape_of(self, span: Span) -> tuple[SeqId, int, int, int]:
        """All that the arrangement depends on; the same for all tokens decoded into one page but the last."""
        block = self._block_tokens
        return span.seq, span.count, span.start if span.count > 1 else span.start // block, span.end // block

    def _arranged(self, spans: Sequence[Span], pages: Sequence[Pages]) -> OwnPages:
        block = self._block_tokens
        segments: list[tuple[int, int, int, int]] = []
        first_page: list[int] = []
        units: list[UnitId] = []
        full: list[int] = []
        row = 0
        for span, own in zip(spans, pages, strict=True):
            for index in range(span.start // block, -(-span.end // block)):
                count = min(span.end, (index + 1) * block) - max(span.start, index * block)
                segments.append((row, row + count, len(units), 1))
                if span.end >= (index + 1) * block:
                    full.append(len(units))
                first_page.append(index)
                units.append(own[index])
                row += count
        table = np.array(segments, np.int32).reshape(-1, 4)
        return OwnPages(
            segments=table,
            first_page=np.array(first_page, np.int32),
            parts=self._parts(units),
            page_of_row=np.repeat(np.arange(len(units)), table[:, 1] - table[:, 0]),
            full=np.array(full, np.int64),
            coded=self._coded([units[page] for page in full]),
        )

    def _parts(self, units: Sequence[UnitId]) -> NDArray[np.uint64]:
        """Raw parts [layers, P]: in slots where a page has some, else in the buffer, one layer over the other."""
        parts = np.empty((self._vm.layout.layers, len(units)), np.uint64)
        passing = self._passing.address
        for column, unit in enumerate(units):
            if unit in self._raw:
                parts[:, column] = self._vm.addresses(self._raw[unit])[self._slot_of] + self._offset_of
            else:
                parts[:, column] = passing
                passing += self._part_bytes
        return parts

    def _coded(self, units: Sequence[UnitId]) -> NDArray[np.uint64]:
        layers = np.arange(self._vm.layout.layers, dtype=np.uint64)[:, None]
        return self._vm.addresses(units)[None, :] + layers * np.uint64(self._vm.layout.part_stride)


def passing_bytes(geometry: PartGeometry, max_rows: int) -> int:
    """Return the bytes of raw parts, of one layer, of all pages that a step of `max_rows` rows can fill from empty."""
    return max_rows // geometry.block_tokens * geometry.raw.part_bytes if geometry.lossy else 0
