"""Many thousand random operations on tiers of a few pages: every law after every step, every byte where it belongs."""

import pytest
from kv_tiers import Moody, kept_disk
from kv_world import World

from tokenvm.memory.kept_folder import verify_folder
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


@pytest.mark.parametrize("disk_pages", [8, 80])
def test_with_pages_that_stay(disk_pages, tmp_path):
    """The register says what the ledger says, and the next store finds that, with the right bytes."""
    world = World(SEEDS + disk_pages, tmp_path, disk_pages, keeps=True)
    vm, most = world.kv.vm, 0
    for step in range(STEPS // 2):
        world.step()
        vm.keeping.tend()
        world.kv.check()
        if step % 10 == 0:
            most = max(most, len(check_register(world)))
    vm.finish_transfers()
    kept = check_register(world)
    world.kv.close()
    assert verify_folder(tmp_path).damaged == []
    again = kept_disk(tmp_path, disk_pages, world.disk.layout)
    left = {page.slot: page.key for page in again.register.found}
    again.close()
    assert kept.items() <= left.items(), "what is written at the end may come on top"
    assert most > disk_pages // 4


def check_register(world):
    """Compare the register with the pages that are indexed and lie on disk; return these, slot → key."""
    vm = world.kv.vm
    vm.settle()
    vm.keeping.swept()
    on_disk = [unit for unit in vm.index if vm.ledger.resident(unit, Tier.DISK)]
    indexed = {vm.ledger.slot(unit, Tier.DISK): vm.index.name(unit)[0] for unit in on_disk}
    rows = world.disk.register._journal._known
    known = {slot: row["key"].tobytes() for slot, row in rows.items()}
    assert indexed.items() <= known.items()
    taken = [unit for unit in vm.ledger.units() if vm.ledger.resident(unit, Tier.DISK)]
    assert known.keys() <= {vm.ledger.slot(unit, Tier.DISK) for unit in taken}
    return indexed


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
