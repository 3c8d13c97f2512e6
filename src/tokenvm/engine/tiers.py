"""Opens all tiers of an engine, or none of them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tokenvm.clock import Clock
from tokenvm.engine.budget import Budget
from tokenvm.engine.disk_tier import open_disk
from tokenvm.engine.warm_up import commit
from tokenvm.memory.backend import DeviceBackend
from tokenvm.memory.codec import Codec
from tokenvm.memory.device import DeviceArena
from tokenvm.memory.host import HostPool
from tokenvm.memory.kept_disk import Keep
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.tier import NullStore, TierStore
from tokenvm.residency.policy.registry import make_device_policy, make_policy
from tokenvm.vm import MemoryManager
from tokenvm.vocab import Tier


@dataclass(frozen=True, slots=True)
class Disk:
    """What the disk tier is to be. With `keep`, its pages outlive the engine."""

    path: Path
    nbytes: int
    codec: Codec
    keep: Keep | None


def open_memory(
    backend: DeviceBackend,
    layout: PageLayout,
    budget: Budget,
    disk: Disk,
    policy: str,
    clock: Clock,
    poison: bool,
    warm_up: bool,
) -> MemoryManager:
    """Open the tiers; where one cannot be opened, close the others and the backend, and raise what that raised."""
    with ExitStack() as opened:
        opened.callback(backend.close)
        arena = DeviceArena(backend, budget.device_slots, layout, poison=poison)
        opened.callback(arena.close)
        host: TierStore = NullStore(Tier.HOST, layout)
        if budget.host_slots:
            host = HostPool(backend, budget.host_slots, layout)
            opened.callback(host.close)
        if warm_up:
            commit(backend, (arena, host))
        store, register = open_disk(disk.path, disk.nbytes, layout, disk.codec, disk.keep)
        opened.callback(store.close)
        ring = budget.ring_slots
        ranks = make_device_policy(policy, budget.device_slots), make_policy(policy)
        vm = MemoryManager(backend, arena, (host, store), ring, *ranks, clock, register)
        opened.pop_all()
    return vm
