"""A KVCache on a few pages of every tier, at random, and what bytes tokens have in it."""

from tokenvm.clock import FakeClock
from tokenvm.kvcache import KVCache
from tokenvm.memory.codec import Bitpack
from tokenvm.memory.device import DeviceArena
from tokenvm.memory.disk import DiskStore
from tokenvm.memory.host import HostPool
from tokenvm.memory.kept_disk import Keep, KeptDiskStore
from tokenvm.memory.kept_size import geometry_of_store, limit_for
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.register import NullRegister
from tokenvm.memory.tier import NullStore
from tokenvm.residency.policy.registry import make_policy
from tokenvm.vm import MemoryManager
from tokenvm.vocab import Answer, Tier

BLOCK, LAYERS, TOKEN_BYTES = 4, 2, 8
PACKED_PART_BYTES = 5 * 4096


class Moody(Bitpack):
    """Refuses a part now and then, always the same ones: it goes as it is."""

    def encode(self, part, stored):
        return Answer.MISS if int(part.sum()) % 3 == 0 else super().encode(part, stored)


def small_kvcache(rng, device, folder, disk_pages, codec, keeps=False):
    """Draw the sizes of its tiers; return it and its disk store."""
    layout = PageLayout(LAYERS, PACKED_PART_BYTES if codec else BLOCK * TOKEN_BYTES)
    if codec:
        device.use(codec)
    arena = DeviceArena(device, rng.randint(3, 8), layout, poison=True)
    host_slots = rng.choice([0, 3, 5])
    host = HostPool(device, host_slots, layout) if host_slots else NullStore(Tier.HOST, layout)
    disk, register = DiskStore(folder, disk_pages * layout.page_bytes, layout, codec=codec), NullRegister()
    if keeps:
        disk.close()
        disk = kept_disk(folder, disk_pages, layout)
        register = disk.register
    vm = MemoryManager(device, arena, (host, disk), rng.randint(3, 9), make_policy("lru"), register=register)
    ahead = rng.choice([None, 0, 1])
    return KVCache(vm, BLOCK, b"model", FakeClock(), prefetch_ahead=ahead), disk


def kept_disk(folder, disk_pages, layout):
    """A disk whose pages the next one finds."""
    limit = limit_for(disk_pages, geometry_of_store(layout))
    return KeptDiskStore(folder, limit, layout, Keep(b"m" * 16), slab_pages=4)


def content(token, layer):
    return (token * 2 + layer).to_bytes(TOKEN_BYTES, "little")
