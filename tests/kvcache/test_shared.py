"""Pages that sequences share are read once for all of them, and lost to all of them."""

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
from tokenvm.memory.sim import SimCopy, SimDevice
from tokenvm.memory.tier import NullStore
from tokenvm.residency.policy.registry import make_policy
from tokenvm.schedule.plan import Plan, Span
from tokenvm.staging import Staged
from tokenvm.vm import MemoryManager
from tokenvm.vocab import SeqId, Tier

BLOCK, LAYERS, RING = 4, 2, 6
LAYOUT = PageLayout(LAYERS, 4096)
TRUNK, OTHER = SeqId(0), SeqId(9)


class Family:
    """Forked sequences and one of its own, whose tokens are bytes: every page read back is compared."""

    def __init__(self, folder: Path, device_pages: int) -> None:
        self.device = SimDevice(1)
        arena = DeviceArena(self.device, device_pages, LAYOUT, poison=True)
        disk = DiskStore(folder, 60 * LAYOUT.page_bytes, LAYOUT)
        self.vm = MemoryManager(
            self.device, arena, (NullStore(Tier.HOST, LAYOUT), disk), RING, make_policy("lru")
        )
        self.kv = KVCache(self.vm, BLOCK, b"model", FakeClock(), prefetch_ahead=0)
        self.tokens: dict[SeqId, list[int]] = {TRUNK: [], OTHER: []}
        self.reads: list[SimCopy] = []
        self.device.fail_when(self._note)
        for seq in self.tokens:
            self.kv.create(seq)

    def _note(self, copy: SimCopy) -> bool:
        if copy.kind is Kind.READ:
            self.reads.append(copy)
        return False

    def fork(self, parent: SeqId, *children: int) -> None:
        for child in map(SeqId, children):
            self.kv.fork(parent, child)
            self.tokens[child] = list(self.tokens[parent])

    def plan(self, *seqs: int, count: int = 1) -> Plan:
        spans = (Span(SeqId(seq), len(self.tokens[SeqId(seq)]), count, True) for seq in seqs)
        return Plan(tuple(spans), spills=True)

    def run(self, plan: Plan) -> Staged:
        """Append a token or some to each sequence, read everything back, commit what was not lost."""
        fresh = {span.seq: [10 * span.seq + at for at in range(span.count)] for span in plan.spans}
        with self.kv.stage(plan) as staged:
            for layer in range(LAYERS):
                rows = zip(
                    staged.targets(layer),
                    staged.offsets,
                    (t for span in plan.spans for t in fresh[span.seq]),
                    strict=True,
                )
                for address, offset, token in rows:
                    ctypes.memset(int(address) + int(offset), token + layer, 1)
                self._compare(staged, layer, plan, fresh)
        for span in plan.spans:
            if span.seq not in staged.lost:
                self.tokens[span.seq] += fresh[span.seq]
                self.kv.commit(span.seq, span.count, self.tokens[span.seq])
        self.kv.write_behind()
        self.kv.check()
        return staged

    def _compare(self, staged: Staged, layer: int, plan: Plan, fresh: dict[SeqId, list[int]]) -> None:
        seen = dict.fromkeys((span.seq for span in plan.spans), 0)
        owner = [span for span in plan.spans for _ in range(span.count)]
        for chunk, parts in staged.rounds(layer):
            for (begin, end, page, count), first in zip(
                chunk.segments.tolist(), chunk.first_page.tolist(), strict=True
            ):
                for span in dict.fromkeys(owner[begin:end]):
                    assert seen[span.seq] == first
                    seen[span.seq] += count
                    tokens = self.tokens[span.seq] + fresh[span.seq]
                    for at in range(count):
                        expected = bytes(
                            t + layer for t in tokens[(first + at) * BLOCK : (first + at + 1) * BLOCK]
                        )
                        found = ctypes.string_at(int(parts[page + at]), len(expected))
                        assert found == expected or span.seq in staged.lost
        assert seen == {span.seq: -(-span.end // BLOCK) for span in plan.spans}


@contextmanager
def family(folder: Path, device_pages: int) -> Iterator[Family]:
    """A trunk of five pages and a bit, another of three; 1, 2 and 3 fork from the trunk, 4 from 3 a page later."""
    made = Family(folder, device_pages)
    made.run(made.plan(TRUNK, count=3 * BLOCK))
    made.run(made.plan(TRUNK, count=2 * BLOCK + 1))
    made.run(made.plan(OTHER, count=3 * BLOCK))
    made.fork(TRUNK, 1, 2, 3)
    for _ in range(BLOCK):
        made.run(made.plan(3))
    made.fork(SeqId(3), 4)
    yield made
    for seq in made.tokens:
        made.kv.release(seq)
    made.vm.finish_transfers()
    assert [made.vm.ledger.used(tier) for tier in Tier] == [0, 0, 0]
    made.kv.close()


SCATTERED = (1, OTHER, 4, 2, 3)


def test_sharers_stand_side_by_side_and_one_plan_is_as_good_as_another(tmp_path: Path) -> None:
    with family(tmp_path, 20) as made:
        gathered = made.kv.gather(made.plan(*SCATTERED))
        seqs = [span.seq for span in gathered.spans]
        assert sorted(seqs) == sorted(SCATTERED)
        assert seqs.index(OTHER) in (0, 4)
        assert abs(seqs.index(SeqId(3)) - seqs.index(SeqId(4))) == 1
        assert made.kv.gather(made.plan(4, 3, 2, 1, OTHER)).spans == gathered.spans
        assert made.kv.gather(gathered) is gathered


def test_where_nothing_is_shared_the_plan_stays(tmp_path: Path) -> None:
    with family(tmp_path, 20) as made:
        for plan in (made.plan(OTHER, 2), made.plan(2, OTHER), made.plan(1), Plan(())):
            assert made.kv.gather(plan) is plan


def test_a_resident_page_stands_once_in_a_step(tmp_path: Path) -> None:
    with family(tmp_path, 20) as made:
        scattered = made.run(made.plan(*SCATTERED))
        assert scattered.resident_pages == 6 + 4 + (5 + 2 + 1 + 2), "neighbours share whatever the order"
        gathered = made.run(made.kv.gather(made.plan(*SCATTERED)))
        assert gathered.resident_pages == 4 + (5 + 1 + 1 + (1 + 1 + 1))
        assert gathered.streamed_pages == 0


def test_a_streamed_page_is_read_once_for_all_who_share_it(tmp_path: Path) -> None:
    """One ring slot and one read a layer: no read comes twice."""
    with family(tmp_path, 7) as made:
        for _ in range(2 * BLOCK):
            made.reads.clear()
            staged = made.run(made.kv.gather(made.plan(*SCATTERED)))
            assert staged.streamed_pages > 0
            assert len(made.reads) == LAYERS * staged.streamed_pages
            assert len({(copy.fd, copy.place) for copy in made.reads}) == len(made.reads)
        made.reads.clear()
        staged = made.run(made.plan(*SCATTERED))
        assert len({(copy.fd, copy.place) for copy in made.reads}) < len(made.reads)


@pytest.mark.parametrize("gathers", [True, False])
def test_a_damaged_page_is_lost_to_all_who_share_it(gathers: bool, tmp_path: Path) -> None:
    """Also to one that did not run; the sequence of its own keeps its token."""
    with family(tmp_path, 7) as made:
        made.reads.clear()
        made.run(made.plan(1))
        place = made.reads[-1].place
        made.device.fail_when(lambda copy: copy.kind is Kind.READ and copy.place == place)
        plan = made.plan(1, OTHER, 4, 2)
        staged = made.run(made.kv.gather(plan) if gathers else plan)
        assert set(staged.lost) == {0, 1, 2, 3, 4}
        assert len(set(staged.lost.values())) == 1
        for seq, valid in staged.lost.items():
            made.kv.truncate(seq, valid)
            made.tokens[seq] = made.tokens[seq][:valid]
        made.run(made.kv.gather(made.plan(*SCATTERED)))
