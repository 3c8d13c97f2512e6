"""The disk tier of an engine: how much room it has, and whether its pages outlive the process."""

from __future__ import annotations

from pathlib import Path

from tokenvm.config import MemoryConfig
from tokenvm.errors import StorageError
from tokenvm.machine import free_disk_bytes
from tokenvm.memory.codec import Codec
from tokenvm.memory.disk import DiskStore
from tokenvm.memory.kept_disk import Keep, KeptDiskStore
from tokenvm.memory.kept_size import kept_capacity, taken_bytes
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.page_format import Geometry
from tokenvm.memory.register import NullRegister, Register
from tokenvm.memory.tier import NullStore, TierStore
from tokenvm.vocab import Tier


def disk_room(memory: MemoryConfig, folder: Path, page_bytes: int, *, keeps: bool) -> int:
    """Return the bytes that the tier can have below `folder`: what is free, and what kept pages take there already.

    Raises StorageError if the user named the folder and nothing fits there.
    """
    room = free_disk_bytes(folder) + (taken_bytes(folder) if keeps else 0)
    if memory.nvme_path != "auto" and memory.nvme_limit != 0 and room < 2 * page_bytes:
        raise StorageError(
            f"there is no room for pages in {folder} ({room} bytes free): "
            "set nvme_path to a folder on another disk, or nvme_limit=0"
        )
    return room


def disk_pages(limit_bytes: int, geometry: Geometry, *, keeps: bool) -> int:
    """Return how many pages the tier will hold; LimitTooSmall where it is on and none fits beside its index."""
    if limit_bytes and keeps:
        return kept_capacity(limit_bytes, geometry)[0]
    return limit_bytes // geometry.page_bytes


def keep_of(memory: MemoryConfig, fingerprint: bytes) -> Keep:
    """Return how these settings ask pages to be kept."""
    ttl_s = 0 if memory.nvme_ttl == "auto" else memory.nvme_ttl
    flush = memory.nvme_flush == "background"
    return Keep(fingerprint, ttl_s=float(ttl_s), flush=flush, read_only=memory.nvme_read_only)


def open_disk(
    folder: Path, limit_bytes: int, layout: PageLayout, codec: Codec, keep: Keep | None
) -> tuple[TierStore, Register]:
    """Open the tier, and the register of what outlives it; without `keep` nothing does, without a limit it is off."""
    if not limit_bytes:
        return NullStore(Tier.DISK, layout), NullRegister()
    if keep is None:
        return DiskStore(folder, limit_bytes, layout, codec=codec), NullRegister()
    store = KeptDiskStore(folder, limit_bytes, layout, keep, codec=codec)
    return store, store.register
