"""Random batches against tensors that hold everything: appended, attended, gathered, picked, cut."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tokenvm.bridges.kv_store import KvStore, Rows
from tokenvm.kernels.paging import PartGeometry
from tokenvm.memory.device import DeviceArena
from tokenvm.memory.disk import DiskStore
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.sim import SimDevice
from tokenvm.memory.tier import NullStore
from tokenvm.residency.policy.registry import make_policy
from tokenvm.vm import MemoryManager
from tokenvm.vocab import Tier

GEOMETRY = PartGeometry(2, 4, 16, torch.float32)
LAYERS, Q_HEADS = 2, 4


class Batch:
    """Rows and, by layer, what should be in them: keys and values [L, Hkv, D] of every row."""

    def __init__(self):
        self.rows = Rows()
        self.kept = []
        self.past = [[], []]


class World:
    def __init__(self, seed, folder):
        self.rng = random.Random(seed)
        self.torch = torch.Generator().manual_seed(seed)
        device = SimDevice(seed)
        layout = PageLayout(LAYERS, GEOMETRY.part_bytes)
        arena = DeviceArena(device, 9, layout, poison=True)
        disk = DiskStore(folder, 400 * layout.page_bytes, layout)
        lower = (NullStore(Tier.HOST, layout), disk)
        self.vm = MemoryManager(device, arena, lower, self.rng.randint(3, 7), make_policy("lru"))
        self.store = KvStore(self.vm, GEOMETRY)
        self.counts = dict.fromkeys(("attended", "gathered", "picked", "cut", "abandoned"), 0)

    def draw(self, *shape):
        return torch.randn(*shape, generator=self.torch)

    def run(self, batch, gather):
        """One pass of both layers over new columns; padding only where attention is ours."""
        rows = len(batch.kept) or self.rng.randint(1, 3)
        columns = self.rng.choice([1, 1, 2, self.rng.randint(1, self.store.chunk_tokens(rows))])
        kept = np.ones((rows, columns), np.bool_)
        if not gather:
            kept[self.rng.randrange(rows), : self.rng.randint(0, columns)] = False
        step = self.store.begin(batch.rows, kept)
        fresh = []
        for layer in range(LAYERS):
            k, v = self.draw(rows, 2, columns, 4), self.draw(rows, 2, columns, 4)
            before = batch.past[layer] or [(torch.zeros(0, 2, 4), torch.zeros(0, 2, 4))] * rows
            fresh.append(
                [
                    tuple(
                        torch.cat([old, new[row].transpose(0, 1)[kept[row]]])
                        for old, new in zip(before[row], (k, v), strict=True)
                    )
                    for row in range(rows)
                ]
            )
            if gather:
                self.check_gathered(step.extend(layer, k, v), fresh[layer])
            else:
                q = self.draw(rows, Q_HEADS, columns, 4)
                window = self.rng.choice([0, 0, 5])
                self.check_attended(step.attend(layer, q, k, v, 0.5, window), q, fresh[layer], kept, window)
            if self.rng.random() < 0.05:
                self.store.abandon()
                self.counts["abandoned"] += 1
                batch.kept = batch.kept or [0] * rows
                return
        self.store.finish()
        batch.past, batch.kept = fresh, [0] * rows
        self.counts["gathered" if gather else "attended"] += 1

    def check_gathered(self, found, wanted):
        for row, (k, v) in enumerate(wanted):
            assert torch.equal(found[0][row].transpose(0, 1)[: len(k)], k)
            assert torch.equal(found[1][row].transpose(0, 1)[: len(v)], v)

    def check_attended(self, out, q, wanted, kept, window):
        for row, (k, v) in enumerate(wanted):
            new = int(kept[row].sum())
            at = torch.arange(len(k) - new, len(k))
            seen = torch.arange(len(k))[None] <= at[:, None]
            if window:
                seen &= torch.arange(len(k))[None] > at[:, None] - window
            for head in range(Q_HEADS):
                scores = q[row, head][kept[row]] @ k[:, head // 2].T * 0.5
                weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
                torch.testing.assert_close(out[row, kept[row], head], weights @ v[:, head // 2])
            assert not out[row, ~kept[row]].any()

    def pick(self, batch):
        picked = [self.rng.randrange(len(batch.rows.seqs)) for _ in range(self.rng.randint(1, 3))]
        self.store.pick(batch.rows, picked)
        batch.kept = [0] * len(picked)
        batch.past = [[layer[row] for row in picked] for layer in batch.past]
        self.counts["picked"] += 1

    def cut(self, batch):
        columns = batch.rows.columns
        left = max(1, columns - self.rng.choice([0, 1, 3, 20, 40]))
        tokens = batch.rows.kept[:, :left].sum(axis=1)
        self.store.cut(batch.rows, left)
        batch.past = [
            [tuple(one[:count] for one in pair) for pair, count in zip(layer, tokens, strict=True)]
            for layer in batch.past
        ]
        self.counts["cut"] += 1


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_done_what_is_read_is_what_was_written(seed, tmp_path):
    world = World(seed, tmp_path)
    gather = seed % 2 == 1
    for _ in range(4):
        batch = Batch()
        for _ in range(30):
            choice = world.rng.random()
            if choice < 0.7 or not batch.rows.columns:
                world.run(batch, gather)
            elif choice < 0.85:
                world.pick(batch)
            else:
                world.cut(batch)
            world.store.kv.check()
        world.store.release(batch.rows)
    world.vm.finish_transfers()
    assert [world.vm.ledger.used(tier) for tier in Tier] == [0, 0, 0]
    other = "attended" if gather else "gathered"
    assert all(count for name, count in world.counts.items() if name != other), world.counts
    assert world.store.stats()["streamed_pages"] > 0
    world.store.close()
