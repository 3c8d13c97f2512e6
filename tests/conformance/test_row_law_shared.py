"""The row law where rows of several sequences attend pages that these share: together or each alone, the same bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tokenvm.kernels import attention, native
from tokenvm.kernels.paging import PartGeometry
from tokenvm.kernels.quantise import quantise
from tokenvm.kernels.state import AttentionState
from tokenvm.residency.sharing import Run, runs_of
from tokenvm.vocab import UnitId

DTYPES = [torch.bfloat16, torch.float32]
SHAPES = [((9, 3), 64, 64), ((4, 4), 32, 32), ((8, 1), 96, 16), ((2, 1), 50, 48), ((6, 2), 64, 128)]


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    level, threads = native.isa(), native.threads()
    yield
    native.set_isa(level)
    native.set_threads(threads)


@dataclass(frozen=True)
class Member:
    """A sequence of a batch: its pages, and the positions of its rows of this step, which are its last."""

    pages: list[UnitId]
    positions: range


def members(block: int) -> list[Member]:
    """Two groups on several levels and two that share nothing; decoded rows and chunks, positions in no order."""

    def of(pages: list[int], length: int, count: int) -> Member:
        assert len(pages) == -(-length // block)
        return Member([UnitId(page) for page in pages], range(length - count, length))

    return [
        of([0, 1, 2, 3, 10], 5 * block - 7, 1),
        of([0, 1, 2, 3, 11, 12], 5 * block + 1, 1),
        of([0, 1, 2, 13, 14], 4 * block + 9, block + 5),
        of([0, 1, 2, 15], 3 * block + 1, 1),
        of([0, 16, 17, 18, 19, 20], 6 * block, 1),
        of([21], block - 3, block - 3),
        of([22, 23, 24], 2 * block + 5, 3),
        of([22, 23, 25], 3 * block - 1, 7),
        *(of([22, 23, 26 + at], 2 * block + 1 + at, 1) for at in range(12)),
        of([40, 41], block + 2, 1),
    ]


class Batch:
    """Random pages, queries for all rows of the members, and attention over any runs."""

    def __init__(self, heads: tuple[int, int], geometry: PartGeometry, rows: Sequence[Member]) -> None:
        self.geometry, self.members = geometry, rows
        self.scale, units = geometry.head_dim**-0.5, 1 + max(max(member.pages) for member in rows)
        source = torch.Generator().manual_seed(5)
        raw = torch.zeros(units, geometry.raw.part_bytes // geometry.dtype.itemsize, dtype=geometry.dtype)
        raw.normal_(generator=source)
        self.arena = raw
        if geometry.lossy:
            self.arena = torch.zeros(units, geometry.part_bytes, dtype=torch.uint8)
            quantise(_addresses(raw), _addresses(self.arena), geometry)
        self.borders = np.cumsum([0, *(len(member.positions) for member in rows)]).tolist()
        self.positions = torch.cat([torch.tensor(list(member.positions)) for member in rows])
        shape = (self.borders[-1], heads[0], geometry.head_dim)
        self.q = (2 * torch.randn(shape, generator=source)).to(geometry.dtype)

    def attend(self, calls: Sequence[Sequence[Run]], window: int) -> torch.Tensor:
        """out and lse, side by side, after the runs of each call."""
        state = AttentionState.empty(*self.q.shape)
        for runs in calls:
            if runs:
                self._call(state, runs, window)
        out, lse = state.finish(torch.float32)
        return torch.cat((out, lse[..., None]), dim=-1).view(torch.int32)

    def _call(self, state: AttentionState, runs: Sequence[Run], window: int) -> None:
        segments: list[tuple[int, int, int, int]] = []
        units: list[UnitId] = []
        for run in runs:
            rows = self.borders[run.begin], self.borders[run.end]
            segments.append((*rows, len(units), run.page_count))
            units += self.members[run.begin].pages[run.first_page : run.first_page + run.page_count]
        first = np.array([run.first_page for run in runs], np.int32)
        parts = _addresses(self.arena)[np.array(units, np.int64)]
        table = np.array(segments, np.int32)
        rest = (parts, self.geometry, self.scale, window)
        attention.attend(state, self.q, self.positions, table, first, *rest)

    @property
    def alone(self) -> list[Run]:
        """One run for each member."""
        return [Run(at, at + 1, 0, len(member.pages)) for at, member in enumerate(self.members)]

    @property
    def shared(self) -> list[Run]:
        """Leading pages together, level by level."""
        return runs_of([member.pages for member in self.members])


def _addresses(parts: torch.Tensor) -> NDArray[np.uint64]:
    return np.array([part.data_ptr() for part in parts], np.uint64)


def cut(runs: Sequence[Run], pages: int) -> list[list[Run]]:
    """Calls of at most so many pages."""
    calls: list[list[Run]] = [[]]
    for run in runs:
        for page in range(run.first_page, run.first_page + run.page_count):
            if sum(one.page_count for one in calls[-1]) == pages:
                calls.append([])
            calls[-1].append(Run(run.begin, run.end, page, 1))
    return calls


def everywhere(batch: Batch, calls: Sequence[Sequence[Run]], window: int) -> list[torch.Tensor]:
    """The result at every level and number of threads."""
    results = []
    for level in native.isa_levels():
        for threads in (1, 2):
            native.set_isa(level)
            native.set_threads(threads)
            results.append(batch.attend(calls, window))
    return results


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize("kv_format", ["raw", "int8", "fp8"])
@pytest.mark.parametrize("window", [0, 61])
@pytest.mark.parametrize(("heads", "head_dim", "block_tokens"), SHAPES)
def test_together_and_alone(
    heads: tuple[int, int],
    head_dim: int,
    block_tokens: int,
    window: int,
    kv_format: str,
    dtype: torch.dtype,
) -> None:
    geometry = PartGeometry(heads[1], head_dim, block_tokens, dtype, kv_format)
    batch = Batch(heads, geometry, members(block_tokens))
    alone = batch.attend([[run] for run in batch.alone], window)
    assert any(run.end - run.begin > 1 for run in batch.shared)
    for calls in ([batch.shared], [batch.alone], cut(batch.shared, 3)):
        for result in everywhere(batch, calls, window):
            assert torch.equal(result, alone)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sequences", [2, 5, 6, 16, 64])
def test_groups_of_any_size(sequences: int, threads: int) -> None:
    """From few rows, whose pages are spread over threads, to many, which walk them in tiles."""
    block, shared = 64, 9
    rows = [
        Member(
            [*map(UnitId, range(shared)), UnitId(shared + at)],
            range(shared * block + at, shared * block + at + 1),
        )
        for at in range(sequences)
    ]
    batch = Batch((9, 3), PartGeometry(3, 64, block, torch.bfloat16), rows)
    native.set_threads(threads)
    alone = batch.attend([[run] for run in batch.alone], 0)
    assert torch.equal(batch.attend([batch.shared], 0), alone)
    assert torch.equal(batch.attend([batch.alone], 0), alone)


def test_a_long_sequence_among_short_ones() -> None:
    """Its pages are spread over threads while the rows of the others walk theirs."""
    block, long = 32, 200
    rows = [Member([UnitId(at)], range(at % block, at % block + 1)) for at in range(30)]
    rows.append(Member([UnitId(30 + page) for page in range(long)], range(long * block - 2, long * block)))
    batch = Batch((6, 2), PartGeometry(2, 32, block, torch.bfloat16), rows)
    alone = batch.attend([[run] for run in batch.alone], 0)
    for result in everywhere(batch, [batch.alone], 0):
        assert torch.equal(result, alone)


def test_rows_take_their_pages_in_the_order_of_the_segments() -> None:
    batch = Batch((2, 1), PartGeometry(1, 32, 16, torch.float32), members(16))
    with pytest.raises(ValueError, match="out of order"):
        batch.attend([[Run(0, 5, 0, 2), Run(1, 2, 1, 2)]], 0)
    with pytest.raises(ValueError, match="out of order"):
        batch.attend([[Run(0, 1, 1, 1), Run(0, 2, 0, 1)]], 0)
