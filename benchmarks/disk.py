"""How fast this machine's disk can be read, at several read sizes and depths: a floor for streaming.

    PYTHONPATH=src python benchmarks/disk.py --path ~/.cache/tokenvm --gigabytes 1

Every figure is a full read of the same file in a shuffled order of extents, through the native pool, with
direct I/O where the directory can do it. The last line streams it through the staging ring in checksummed
parts of 12 KiB.
"""

# ruff: noqa: T201 - it prints its findings
from __future__ import annotations

import argparse
import ctypes
import time
from pathlib import Path

import numpy as np

from tokenvm.memory.backend import Check, Copies, Kind
from tokenvm.memory.cpu import CpuDevice
from tokenvm.memory.device import DeviceArena
from tokenvm.memory.disk import DiskStore
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.transfer import TransferEngine
from tokenvm.vocab import Answer, Move, SlotId, Tier, UnitId

LAYOUT = PageLayout(layers=30, part_bytes=12288)
SIZES = (16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20)
DEPTHS = (1, 2, 4, 8)
RING_BYTES = 32 << 20


def write_pages(store: DiskStore) -> None:
    """Fill the store with pages that do not compress."""
    device = CpuDevice()
    arena = DeviceArena(device, 1, LAYOUT)
    engine = TransferEngine(device, {Tier.DEVICE: arena, Tier.DISK: store})
    filler = np.random.default_rng(0).bytes(LAYOUT.page_bytes)
    ctypes.memmove(arena.base, filler, LAYOUT.page_bytes)
    moves = [Move(UnitId(i), Tier.DEVICE, SlotId(0), Tier.DISK, SlotId(i)) for i in range(store.capacity)]
    begin_s = time.monotonic()
    assert engine.submit(moves, urgent=True).wait() is Answer.HIT
    seconds = time.monotonic() - begin_s
    speed = engine.moved_bytes["nvme_write"] / seconds / 1e9
    print(f"write, whole pages, 4 in flight      {speed:8.2f} GB/s")
    device.close()
    arena.close()


def read_extents(store: DiskStore, size: int, depth: int) -> float:
    """Read everything once in extents of `size` bytes with `depth` in flight; GB/s."""
    fd = int(store.places(0, 0).fd)
    extents = store.capacity * LAYOUT.page_bytes // size
    device = CpuDevice(threads=depth, read_bytes=1)
    region = device.allocate(depth * 8 * size)
    order = np.random.default_rng(1).permutation(extents).astype(np.uint64)
    begin_s = time.monotonic()
    for first in range(0, extents, depth * 8):
        places = order[first : first + depth * 8] * np.uint64(size)
        n = len(places)
        batch = Copies(
            kind=np.full(n, Kind.READ, np.uint8),
            check=np.full(n, Check.NONE, np.uint8),
            fd=np.full(n, fd, np.int32),
            place=places,
            address=np.arange(n, dtype=np.uint64) * np.uint64(size) + np.uint64(region.address),
            nbytes=np.full(n, size, np.uint64),
            checksum=np.zeros(n, np.uint32),
        )
        assert device.copies().submit(batch, urgent=True).wait() is Answer.HIT
    seconds = time.monotonic() - begin_s
    device.close()
    return extents * size / seconds / 1e9


def stream(store: DiskStore, depth: int) -> float:
    """Stream every page layer by layer through a ring, giving credits back 64 parts at a time; GB/s."""
    device = CpuDevice(threads=depth)
    slots = RING_BYTES // LAYOUT.part_stride
    region = device.allocate(slots * LAYOUT.part_stride)
    ring = device.ring(region.address, slots, LAYOUT.part_stride)
    engine = TransferEngine(device, {Tier.DISK: store}, ring)
    pages = np.arange(store.capacity)
    program = engine.program(np.full(len(pages), Tier.DISK), pages, np.arange(LAYOUT.layers))
    begin_s = time.monotonic()
    first = engine.stream(program)
    for ticket in range(first, first + len(program), 64):
        end = min(ticket + 64, first + len(program))
        assert ring.wait(end) is Answer.HIT
        ring.release(end)
    seconds = time.monotonic() - begin_s
    device.close()
    return len(program) * LAYOUT.part_stride / seconds / 1e9


def main() -> None:
    """Print one line per size, one column per depth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", type=Path, default=Path("~/.cache/tokenvm/bench").expanduser())
    parser.add_argument("--gigabytes", type=float, default=0.5)
    args = parser.parse_args()
    pages = max(1, int(args.gigabytes * 1e9) // LAYOUT.page_bytes)
    store = DiskStore(args.path, pages * LAYOUT.page_bytes, LAYOUT, slab_pages=pages)
    print(f"{args.path}: {pages * LAYOUT.page_bytes} bytes, {'direct' if store.direct else 'buffered'} I/O")
    write_pages(store)
    print("read, GB/s               in flight:  " + "".join(f"{depth:8d}" for depth in DEPTHS))
    for size in SIZES:
        row = "".join(f"{read_extents(store, size, depth):8.2f}" for depth in DEPTHS)
        print(f"  extents of {size >> 10:5d} KiB              {row}")
    row = "".join(f"{stream(store, depth):8.2f}" for depth in DEPTHS)
    print(f"  ring, parts of 12 KiB              {row}")
    store.close()


if __name__ == "__main__":
    main()
