"""A KVCache on a few pages of every tier, at random, and what bytes tokens have in it."""

from tokenvm.clock import FakeClock
from tokenvm.kvcache import KVCache
from tokenvm.memory.codec import Bitpack
from tokenvm.memory.device import DeviceArena
from tokenvm.memory.disk import DiskStore
from tokenvm.memory.host import HostPool
from tokenvm.memory.layout import PageLayout
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


def small_kvcache(rng, device, folder, disk_pages, codec):
    """Draw the sizes of its tiers; return it and its disk store."""
    layout = PageLayout(LAYERS, PACKED_PART_BYTES if codec else BLOCK * TOKEN_BYTES)
    if codec:
        device.use(codec)
    arena = DeviceArena(device, rng.randint(3, 8), layout, poison=True)
    host_slots = rng.choice([0, 3, 5])
    host = HostPool(device, host_slots, layout) if host_slots else NullStore(Tier.HOST, layout)
    disk = DiskStore(folder, disk_pages * layout.page_bytes, layout, codec=codec)
    vm = MemoryManager(device, arena, (host, disk), rng.randint(3, 9), make_policy("lru"))
    ahead = rng.choice([None, 0, 1])
    return KVCache(vm, BLOCK, b"model", FakeClock(), prefetch_ahead=ahead), disk


def content(token, layer):
    return (token * 2 + layer).to_bytes(TOKEN_BYTES, "little")
