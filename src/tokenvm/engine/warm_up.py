"""Before the first request: take all the memory that a later step can ask for, so that none runs out of it.

Arena, ring and host pool are written to; then made-up rows go through the model, as many as the largest batch has, and
through attention over as many pages as the longest sequence has, which is where the kernels' scratch grows. Nothing of
it reaches the ledger, the scheduler or a page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tokenvm.arrange import Round
from tokenvm.engine.runner import Runner
from tokenvm.engine.startup import StartupPlan
from tokenvm.kernels.paging import PartGeometry
from tokenvm.memory.backend import DeviceBackend
from tokenvm.memory.tier import TierStore
from tokenvm.open_pages import OwnPages
from tokenvm.schedule.plan import Plan, Span
from tokenvm.staging import Staged
from tokenvm.vm import MemoryManager
from tokenvm.vocab import SeqId


def commit(backend: DeviceBackend, stores: Iterable[TierStore]) -> None:
    """Write into every page of memory that these tiers own, none of which is in use: the system has to lend it now."""
    for store in stores:
        if store.capacity:
            address = int(store.places(0, 0).place)
            backend.fill(address, 0, store.capacity * store.layout.page_bytes)


def warm_up(vm: MemoryManager, runner: Runner, geometry: PartGeometry, plan: StartupPlan) -> None:
    """Take the ring and the workspace of a plan. Called once, on the thread that will step."""
    vm.backend.fill(int(vm.ring.addresses(0, 1)[0]), 0, vm.ring.slots * vm.ring.stride)
    rows = _largest_batch(plan)
    spans = [Span(SeqId(at), 0, count, samples=True) for at, count in enumerate(rows)]
    with _made_up(vm, geometry, rows, plan.max_model_len, pages=1) as staged:
        runner.run(Plan(tuple(spans)), [0] * sum(rows), staged)
    count = min(plan.largest_batch_rows, plan.max_model_len)
    while count:
        with _made_up(vm, geometry, [count], plan.max_model_len, pages=plan.max_model_len) as staged:
            runner.attend_once(staged)
        count //= 2


def _largest_batch(plan: StartupPlan) -> list[int]:
    """Rows of each sequence: as many sequences as run at once share as many rows as a step has."""
    crowd = min(plan.crowd, plan.largest_batch_rows)
    share, rest = divmod(plan.largest_batch_rows, crowd)
    return [min(share + (at < rest), plan.max_model_len) for at in range(crowd)]


@contextmanager
def _made_up(
    vm: MemoryManager, geometry: PartGeometry, rows: Sequence[int], positions: int, pages: int
) -> Iterator[Staged]:
    """Lend what looks like a step: so many rows of each sequence, behind `pages` whole pages if positions allow."""
    pages = min(pages, (positions - max(rows)) // geometry.block_tokens)
    rehearsal = Rehearsal(vm.backend, geometry, vm.layout.layers, rows, pages)
    try:
        yield cast(Staged, rehearsal)
    finally:
        rehearsal.close()


class Rehearsal:
    """Stands in for `Staged`: rows that begin `pages` pages into their sequences, all of which show the same zeros.

    Keys and values go to a buffer of its own, the same for every layer. `counts` are the rows of each sequence.
    """

    def __init__(
        self, backend: DeviceBackend, geometry: PartGeometry, layers: int, counts: Sequence[int], pages: int
    ) -> None:
        block = geometry.block_tokens
        stride = -(-geometry.raw.part_bytes // 4096) * 4096
        own = sum(-(-count // block) for count in counts)
        self._region = backend.allocate((1 + 2 * own) * stride)
        places = self._region.address + np.arange(1 + 2 * own, dtype=np.uint64) * np.uint64(stride)
        rows = np.concatenate([np.arange(count) for count in counts])
        self.positions = pages * block + rows.astype(np.int64)
        self.offsets = (rows % block).astype(np.int32)
        self.own = _own_pages(counts, pages, block, layers, places[1:], lossy=geometry.lossy)
        ends = np.cumsum(counts)
        table = np.array(
            [(end - count, end, 0, pages) for end, count in zip(ends, counts, strict=True)], np.int32
        )
        self._round = Round(table, np.zeros(len(table), np.int32), 0, slice(0, pages))
        self._zeros = np.repeat(places[:1], pages)

    def targets(self, layer: int) -> NDArray[np.uint64]:
        """See `Staged.targets`."""
        return self.own.targets(layer)

    def rounds(self, layer: int) -> Iterator[tuple[Round, NDArray[np.uint64]]]:
        """See `Staged.rounds`."""
        if len(self._zeros):
            yield self._round, self._zeros

    def close(self) -> None:
        """Give the buffer back."""
        self._region.close()


def _own_pages(
    counts: Sequence[int], first: int, block: int, layers: int, places: NDArray[np.uint64], *, lossy: bool
) -> OwnPages:
    """Arrange the pages that the rows stand in: raw in the first half of `places`, quantised in the second."""
    segments: list[tuple[int, int, int, int]] = []
    indices: list[int] = []
    row = 0
    for count in counts:
        for begin in range(0, count, block):
            size = min(block, count - begin)
            segments.append((row, row + size, len(segments), 1))
            indices.append(first + begin // block)
            row += size
    table = np.array(segments, np.int32)
    sizes = table[:, 1] - table[:, 0]
    full = np.flatnonzero(sizes == block) if lossy else np.empty(0, np.int64)
    raw, coded = places[: len(table)], places[len(table) :][full]
    return OwnPages(
        segments=table,
        first_page=np.array(indices, np.int32),
        parts=np.tile(raw, (layers, 1)),
        page_of_row=np.repeat(np.arange(len(table)), sizes),
        full=full,
        coded=np.tile(coded, (layers, 1)),
    )
