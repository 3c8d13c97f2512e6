"""A small store that keeps its pages, and pages in it whose bytes and names are known by a number."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from tokenvm.memory.kept_disk import Keep, KeptDiskStore
from tokenvm.memory.kept_size import geometry_of_store, limit_for
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.page_format import checksum_of
from tokenvm.vocab import PageKey, SlotId

LAYOUT = PageLayout(layers=3, part_bytes=5000)
GEOMETRY = geometry_of_store(LAYOUT)
OURS, THEIRS = b"o" * 16, b"t" * 16


def opened(
    folder: Path, pages: int = 8, *, slab_pages: int | None = 4, limit_bytes: int = 0, **keep: Any
) -> KeptDiskStore:
    limit = limit_bytes or limit_for(pages, GEOMETRY)
    how = Keep(keep.pop("fingerprint", OURS), **keep)
    return KeptDiskStore(folder, limit, LAYOUT, how, direct=False, slab_pages=slab_pages)


def key_of(page: int) -> PageKey:
    return PageKey(bytes([page]) * 16) if page else PageKey(b"")


def part_of(page: int, layer: int) -> bytes:
    return np.random.default_rng([page, layer]).bytes(LAYOUT.part_stride)


def put(store: KeptDiskStore, slot: int, page: int, parent: int = 0) -> None:
    """Write a page's bytes and have it remembered, as a move that landed would."""
    store.ensure(slot + 1)
    for layer in range(LAYOUT.layers):
        place = store.places(slot, layer)
        os.pwrite(int(place.fd), part_of(page, layer), int(place.place))
        store.checksums[slot, layer] = checksum_of(part_of(page, layer))
    store.register.remember(SlotId(slot), key_of(page), key_of(parent))


def put_chain(store: KeptDiskStore, pages: int) -> None:
    """Pages 1, 2, ... in slots 0, 1, ..., each going on from the one before."""
    for page in range(1, pages + 1):
        put(store, page - 1, page, page - 1)


def found(store: KeptDiskStore) -> dict[int, int]:
    """Slot → page of what was found, each verified to be whole."""
    pages = {int(page.slot): page.key[0] for page in store.register.found}
    for slot, page in pages.items():
        for layer in range(LAYOUT.layers):
            place = store.places(slot, layer)
            assert os.pread(int(place.fd), LAYOUT.part_stride, int(place.place)) == part_of(page, layer)
            assert store.checksums[slot, layer] == checksum_of(part_of(page, layer))
    return pages


def dead(store: KeptDiskStore) -> None:
    """Let go of a store as the death of its process would, without a checkpoint. What was said is on disk."""
    store.register.flush()
    for fd in store._fds[store._fds >= 0].tolist():
        os.close(fd)
    store._fds[:] = -1
    assert store._lock is not None
    store._lock.release()


def on_disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def losses(store: KeptDiskStore) -> dict[str, int]:
    return {
        name: count
        for name, count in store.register.as_dict().items()
        if count
        and name.endswith(("_pages", "damaged_records"))
        and name.split("_")[0] not in ("warm", "kept", "flushed")
    }
