"""Many thousand random operations on tiers of a few pages: every law after every step, every byte where it belongs."""

import pytest
from kv_tiers import Moody
from kv_world import World

from tokenvm.vocab import Tier

STEPS, SEEDS = 2000, 5
EXPECTED = (
    "run",
    "lost",
    "streamed",
    "forked",
    "truncated",
    "failed",
    "stale",
    "announced",
    "waited",
    "begun",
)
EXPECTED += ("begun with a prefix", "paused", "resumed", "reclaimed", "refused", "shared")


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
    world.counts["reclaimed"] = world.kv.vm.room.reclaimed_pages
    world.kv.forget_prefixes()
    world.kv.check()
    assert [world.kv.vm.ledger.used(tier) for tier in Tier] == [0, 0, 0]
    unexpected = "refused" if disk_pages > 8 else ""
    assert all(world.counts[name] > 0 for name in EXPECTED if name != unexpected), world.counts
    world.kv.close()
