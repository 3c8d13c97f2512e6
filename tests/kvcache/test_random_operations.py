"""Ten thousand random operations on tiers of a few pages: every law after every step, every byte where it belongs."""

import ctypes
import random

import numpy as np
import pytest

from tokenvm.clock import FakeClock
from tokenvm.errors import StorageError
from tokenvm.kvcache import KVCache
from tokenvm.memory.codec import Bitpack
from tokenvm.memory.device import DeviceArena
from tokenvm.memory.disk import DiskStore
from tokenvm.memory.host import HostPool
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.sim import SimDevice
from tokenvm.memory.tier import NullStore
from tokenvm.residency.policy.registry import make_policy
from tokenvm.schedule.plan import Plan, Span
from tokenvm.vm import MemoryManager
from tokenvm.vocab import Answer, SeqId, Tier

BLOCK, LAYERS, TOKEN_BYTES = 4, 2, 8
STEPS, SEEDS = 2000, 5
PACKED_PART_BYTES = 5 * 4096


class Moody(Bitpack):
    """Refuses a part now and then, always the same ones: it goes as it is."""

    def encode(self, part, stored):
        return Answer.MISS if int(part.sum()) % 3 == 0 else super().encode(part, stored)


class World:
    """A KVCache beside a plain model of it: what bytes each token of each sequence must have."""

    def __init__(self, seed, folder, disk_pages, codec=None):
        self.rng = random.Random(seed)
        self.device = SimDevice(seed)
        layout = PageLayout(LAYERS, PACKED_PART_BYTES if codec else BLOCK * TOKEN_BYTES)
        if codec:
            self.device.use(codec)
        arena = DeviceArena(self.device, self.rng.randint(3, 8), layout, poison=True)
        host_slots = self.rng.choice([0, 3, 5])
        host = HostPool(self.device, host_slots, layout) if host_slots else NullStore(Tier.HOST, layout)
        disk = self.disk = DiskStore(folder, disk_pages * layout.page_bytes, layout, codec=codec)
        vm = MemoryManager(self.device, arena, (host, disk), self.rng.randint(3, 9), make_policy("lru"))
        ahead = self.rng.choice([None, 0, 1])
        self.kv = KVCache(vm, BLOCK, b"model", FakeClock(), prefetch_ahead=ahead)
        self.tokens: dict[SeqId, list[int]] = {}  # committed tokens
        self.next_seq = 0
        self.counts = dict.fromkeys(
            ("run", "lost", "streamed", "shared", "refused", "forked", "truncated", "failed", "stale"), 0
        )

    @property
    def crowd(self):
        return self.kv.vm.ledger.capacity(Tier.DEVICE) - 1

    def step(self):
        actions = [self.create, self.run, self.run, self.run, self.run_many, self.run_many, self.fork]
        actions += [self.truncate, self.release, self.demote, self.settle, self.fail, self.abandon]
        self.rng.choice(actions)()
        self.kv.check()
        for seq, tokens in self.tokens.items():
            assert self.kv.length_tokens(seq) == len(tokens)

    def create(self):
        if len(self.tokens) < self.crowd:
            self.kv.create(self._new([]))

    def run(self):
        self._run(self._choose(1), longest=2 * BLOCK)

    def run_many(self):
        self._run(self._choose(len(self.tokens)), longest=1)

    def fork(self):
        for parent in self._choose(1):
            if len(self.tokens) < self.crowd:
                child = SeqId(self.next_seq)
                try:
                    self.kv.fork(parent, child)
                except StorageError:
                    self.counts["refused"] += 1
                    self.kv.release(child)
                    self.next_seq += 1
                    return
                self._new(list(self.tokens[parent]))
                self.counts["forked"] += 1

    def truncate(self):
        for seq in self._choose(1):
            kept = self.kv.truncate(seq, self.rng.randint(0, len(self.tokens[seq])))
            del self.tokens[seq][kept:]
            self.counts["truncated"] += 1

    def release(self):
        for seq in self._choose(1):
            if self.rng.random() < 0.5 or len(self.tokens[seq]) > 40:
                self.kv.release(seq)
                del self.tokens[seq]

    def demote(self):
        self.kv.write_behind()
        try:
            self.kv.vm.make_room(self.rng.randint(1, 2), [])
        except StorageError:
            self.counts["refused"] += 1

    def settle(self):
        self.rng.choice([self.kv.vm.settle, self.kv.vm.finish_transfers])()

    def fail(self):
        self.device.fail_next(self.rng.randint(1, 2))
        self.counts["failed"] += 1

    def abandon(self):
        """A step that dies half way must leave everything as it was."""
        if not self.tokens:
            return
        plan = self._plan(self._choose(1), BLOCK)
        with pytest.raises((KeyError, StorageError)):
            self._die_half_way(plan)

    def _die_half_way(self, plan):
        with self.kv.stage(plan) as staged:
            next(staged.rounds(0))
            raise KeyError

    def _new(self, tokens):
        seq = SeqId(self.next_seq)
        self.next_seq += 1
        self.tokens[seq] = tokens
        return seq

    def _choose(self, count):
        return sorted(self.rng.sample(sorted(self.tokens), min(count, len(self.tokens))))

    def _plan(self, sequences, longest):
        free = self.kv.vm.ledger.capacity(Tier.DEVICE) - len(self.tokens)
        longest = min(longest, max(1, free - 1) * BLOCK)
        lengths = {seq: len(self.tokens[seq]) for seq in sequences}
        spans = tuple(Span(seq, n, self.rng.randint(1, longest), True) for seq, n in lengths.items())
        return Plan(spans, spills=self.rng.random() < 0.7)

    def _run(self, sequences, longest):
        plan = self._plan(sequences, longest)
        if not plan.spans:
            return
        if self.rng.random() < 0.7:
            plan = self.kv.gather(plan)
        fresh = {span.seq: [self.rng.randrange(1 << 30) for _ in range(span.count)] for span in plan.spans}
        wanted = {seq: self.tokens[seq] + more for seq, more in fresh.items()}
        try:
            with self.kv.stage(plan) as staged:
                for layer in range(LAYERS):
                    self._append(staged, layer, [token for span in plan.spans for token in fresh[span.seq]])
                    self._read(staged, layer, plan, wanted)
        except StorageError:
            self.counts["refused"] += 1
            return
        self.counts["run"] += 1
        self.counts["streamed"] += staged.streamed_pages
        self._commit(plan, staged.lost, wanted)

    def _commit(self, plan, lost, wanted):
        for seq, valid in lost.items():
            kept = self.kv.truncate(seq, valid)
            assert kept <= valid
            del self.tokens[seq][kept:]
            self.counts["lost"] += 1
        along = [unit for unit in self.kv.vm.ledger.units() if self.kv.vm.ledger.lowered(unit)]
        for span in plan.spans:
            if span.seq not in lost and self.rng.random() < 0.9:  # else: appended, never committed
                self.tokens[span.seq] = wanted[span.seq]
                self.kv.commit(span.seq, span.count, wanted[span.seq])
        self.counts["stale"] += sum(not self.kv.vm.ledger.sealed(unit) for unit in along)
        if self.rng.random() < 0.7:
            self.kv.write_behind()

    def _append(self, staged, layer, tokens):
        for address, offset, token in zip(staged.targets(layer), staged.offsets, tokens, strict=True):
            data = content(token, layer)
            ctypes.memmove(int(address) + int(offset) * TOKEN_BYTES, data, TOKEN_BYTES)

    def _read(self, staged, layer, plan, wanted):
        """What a kernel would read must be the bytes of the right tokens, in position order, or be reported lost."""
        seen: dict[SeqId, int] = {}
        starts = np.cumsum([0, *(span.count for span in plan.spans)])
        for chunk, parts in staged.rounds(layer):
            for segment, first in zip(chunk.segments.tolist(), chunk.first_page.tolist(), strict=True):
                sharers = plan.spans[slice(*np.searchsorted(starts, segment[:2]))]
                self.counts["shared"] += len(sharers) > 1
                for seq, index in ((span.seq, at) for span in sharers for at in range(segment[3])):
                    previous, seen[seq] = seen.get(seq, -1), first + index
                    if seq not in staged.lost:
                        assert previous == first + index - 1, "pages out of order"
                        self._compare(parts[segment[2] + index], wanted[seq], first + index, layer)
        for span in plan.spans:
            assert seen[span.seq] == (span.end - 1) // BLOCK, "pages missing"

    def _compare(self, address, tokens, page, layer):
        expected = b"".join(content(token, layer) for token in tokens[page * BLOCK : (page + 1) * BLOCK])
        assert ctypes.string_at(int(address), len(expected)) == expected


def content(token, layer):
    return (token * 2 + layer).to_bytes(TOKEN_BYTES, "little")


@pytest.mark.parametrize("disk_pages", [8, 80])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_law_holds_and_every_byte_is_right(seed, disk_pages, tmp_path):
    live_and_die(World(seed, tmp_path, disk_pages), disk_pages)


@pytest.mark.parametrize("disk_pages", [8, 80])
def test_with_a_codec_on_disk(disk_pages, tmp_path):
    world = World(SEEDS + disk_pages, tmp_path, disk_pages, Moody())
    live_and_die(world, disk_pages)
    written = world.disk.checksums != 0
    assert world.disk.packed[written].any()
    assert not world.disk.packed[written].all()


def live_and_die(world, disk_pages):
    for _ in range(STEPS):
        world.step()
        assert world.disk.high_water_bytes <= disk_pages * world.disk.layout.page_bytes
    for seq in list(world.tokens):
        world.kv.release(seq)
    world.kv.vm.finish_transfers()
    world.kv.check()
    assert [world.kv.vm.ledger.used(tier) for tier in Tier] == [0, 0, 0]
    unexpected = "refused" if disk_pages > 8 else ""
    assert all(count > 0 for name, count in world.counts.items() if name != unexpected), world.counts
    world.kv.close()
