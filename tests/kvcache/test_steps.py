"""What steps leave behind: pages written down while they fill, and reads that go on from step to step."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tokenvm.clock import FakeClock
from tokenvm.kvcache import KVCache
from tokenvm.memory.backend import Kind
from tokenvm.memory.device import DeviceArena
from tokenvm.memory.disk import DiskStore
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.sim import SimDevice
from tokenvm.memory.tier import NullStore
from tokenvm.residency.policy.registry import make_policy
from tokenvm.schedule.plan import Plan, Span
from tokenvm.staging import Staged
from tokenvm.vm import MemoryManager
from tokenvm.vocab import SeqId, Tier, UnitId

BLOCK, LAYERS, RING, DISK = 4, 3, 6, 40
SEQ = SeqId(0)
LAYOUT = PageLayout(LAYERS, 4096)


class Desk:
    """One sequence whose tokens are bytes; the part of a page and layer holds `token + layer` of each token."""

    def __init__(self, folder: Path, seed: int, device_pages: int) -> None:
        self.device = SimDevice(seed)
        arena = DeviceArena(self.device, device_pages, LAYOUT, poison=True)
        disk = DiskStore(folder, DISK * LAYOUT.page_bytes, LAYOUT)
        null = NullStore(Tier.HOST, LAYOUT)
        self.vm = MemoryManager(self.device, arena, (null, disk), RING, make_policy("lru"))
        self.kv = KVCache(self.vm, BLOCK, b"model", FakeClock())
        self.kv.create(SEQ)
        self.tokens: list[int] = []

    def run(self, tokens: list[int], *, commit: bool = True, layers: int = LAYERS) -> Staged:
        """Append tokens, read everything back, commit; only the first `layers` are computed."""
        start = len(self.tokens)
        plan = Plan((Span(SEQ, start, len(tokens), True),), spills=True)
        with self.kv.stage(plan) as staged:
            for layer in range(layers):
                self._append(staged, layer, tokens)
                self._compare(staged, layer, self.tokens + tokens)
            if layers < LAYERS:
                raise KeyError
        if commit:
            self.tokens += tokens
            self.kv.commit(SEQ, len(tokens), self.tokens)
        self.kv.check()
        return staged

    def _append(self, staged: Staged, layer: int, tokens: list[int]) -> None:
        for address, offset, token in zip(staged.targets(layer), staged.offsets, tokens, strict=True):
            ctypes.memset(int(address) + int(offset), token + layer, 1)

    def _compare(self, staged: Staged, layer: int, tokens: list[int]) -> None:
        seen = 0
        for chunk, parts in staged.rounds(layer):
            for address in parts[chunk.pages].tolist():
                expected = bytes(token + layer for token in tokens[seen * BLOCK : (seen + 1) * BLOCK])
                assert ctypes.string_at(address, len(expected)) == expected
                seen += 1
        assert seen == -(-len(tokens) // BLOCK)

    @property
    def pages(self) -> list[UnitId]:
        return list(self.vm.ledger.units())


@contextmanager
def desk(folder: Path, seed: int, device_pages: int) -> Iterator[Desk]:
    made = Desk(folder, seed, device_pages)
    yield made
    made.kv.release(SEQ)
    made.vm.finish_transfers()
    assert [made.vm.ledger.used(tier) for tier in Tier] == [0, 0, 0]
    made.kv.check()
    made.kv.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_chunk_takes_every_slot_again_and_again(seed: int, tmp_path: Path) -> None:
    """Each page is written once, while it fills; nothing is left to write when the next chunk needs its slot."""
    with desk(tmp_path, seed, device_pages=3) as made:
        for chunk in range(4):
            made.run([20 * chunk + at for at in range(3 * BLOCK)])
            assert all(made.vm.ledger.lowered(unit) for unit in made.pages)
        made.vm.finish_transfers()
        assert made.vm.moved_bytes["nvme_write"] == 12 * LAYOUT.page_bytes


@pytest.mark.parametrize("seed", range(6))
def test_a_step_that_is_not_committed_leaves_nothing_below(seed: int, tmp_path: Path) -> None:
    """Its pages were written down, and then other tokens come in their place."""
    with desk(tmp_path, seed, device_pages=2) as made:
        made.run([1, 2, 3])
        made.run([50, 51, 52, 53, 54], commit=False)
        assert any(made.vm.ledger.lowered(unit) for unit in made.pages)
        made.run([4, 5])
        made.run([6, 7, 8])
        made.run([9] * 8)
        assert made.run([10]).streamed_pages == 3
        made.vm.finish_transfers()
        assert made.vm.ledger.used(Tier.DISK) == 4


@pytest.mark.parametrize("layers", range(LAYERS))
@pytest.mark.parametrize("seed", range(3))
def test_a_step_that_dies_half_way_leaves_nothing_below(seed: int, layers: int, tmp_path: Path) -> None:
    with desk(tmp_path, seed, device_pages=2) as made:
        made.run([1, 2, 3])
        with pytest.raises(KeyError):
            made.run([50, 51, 52, 53, 54], layers=layers)
        made.run([4, 5, 6, 7, 8])
        made.run([9] * 8)
        assert made.run([10]).streamed_pages == 3


def test_pages_that_cannot_be_written_along_are_written_later(tmp_path: Path) -> None:
    with desk(tmp_path, 0, device_pages=2) as made:
        failing = [True]
        made.device.fail_when(lambda copy: failing[0] and copy.kind is Kind.WRITE)
        made.run(list(range(8)))
        made.vm.finish_transfers()
        assert made.vm.ledger.used(Tier.DISK) == 0
        failing[0] = False
        made.run(list(range(8, 16)))
        assert made.run([99]).streamed_pages == 3


def test_pages_beyond_the_disk_are_not_written_along(tmp_path: Path) -> None:
    with desk(tmp_path, 0, device_pages=DISK + 4) as made:
        made.run([1] * (DISK + 2) * BLOCK)
        made.vm.finish_transfers()
        assert made.vm.ledger.used(Tier.DISK) == DISK


@pytest.mark.parametrize("device_pages", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_reads_go_on_from_step_to_step_also_where_a_page_fills(
    seed: int, device_pages: int, tmp_path: Path
) -> None:
    """Once pages are streamed, no read is ever dropped: who leaves for the next page is known a step before."""
    with desk(tmp_path, seed, device_pages) as made:
        made.run([1] * (device_pages * BLOCK))
        made.run([2] * 2 * BLOCK)
        made.run([3])
        before = made.device.counters.dropped
        streamed = [made.run([token % 50]).streamed_pages for token in range(4 * BLOCK)]
        assert made.device.counters.dropped == before
        assert streamed[-1] - streamed[0] == 4, "every page that filled displaced one"
