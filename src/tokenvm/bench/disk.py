"""How fast the disk under the pages is read and written, by size and calls in flight, and what our ring gets of it."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tokenvm.bench.figures import Spread, spread
from tokenvm.bench.floor import FILE_BYTES, HUGE_BYTES, ProbeFile, Way, advise_huge, probe_file
from tokenvm.bench.report import Grid, Report
from tokenvm.memory.cpu import CpuDevice
from tokenvm.memory.device import DeviceArena
from tokenvm.memory.disk import DiskStore
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.transfer import TransferEngine
from tokenvm.vocab import Answer, Move, SlotId, Tier, UnitId

SIZES = (16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20)
DEPTHS = (1, 2, 4, 8)

_RING_BYTES = 8 << 20
_RELEASED_AT_ONCE = 16


def measure(folder: Path, layout: PageLayout, rounds: int, console: Console) -> Report:
    """Measure every size and depth, and pages of `layout` streamed through the ring, in turn, `rounds` times."""
    samples: dict[tuple[str, int, int], list[float]] = {}
    with probe_file(folder) as file:
        for turn in range(rounds):
            console.print(f"round {turn + 1} of {rounds}", style="dim")
            for key, rate in _round(file):
                samples.setdefault(key, []).append(rate)
            for key, rate in _ring_round(folder, layout):
                samples.setdefault(key, []).append(rate)
    rows = [
        {"what": what, "call_bytes": size, "in_flight": depth, "bytes_per_s": spread(rates)}
        for (what, size, depth), rates in samples.items()
    ]
    figures = {"bench": "disk", "folder": str(folder), "part_bytes": layout.part_stride, "rows": rows}
    return Report("disk", figures, [_grid(rows)], _notes(rows, layout, file.direct))


def _round(file: ProbeFile) -> list[tuple[tuple[str, int, int], float]]:
    def read(
        what: str, size: int, depth: int, direct: bool, huge: bool
    ) -> tuple[tuple[str, int, int], float]:
        return (f"read, {what}", size, depth), file.read_rate(Way(size, depth, direct, huge))

    found = []
    if file.direct:
        found += [read("direct", s, d, True, False) for s in SIZES for d in DEPTHS]
        found += [read("direct, huge pages", s, d, True, True) for s in SIZES[1:] for d in DEPTHS]
    found += [read("buffered", s, d, False, False) for s in SIZES[-2:] for d in DEPTHS]
    kind = "direct" if file.direct else "buffered"
    writes = ((s, d) for s in SIZES[2:] for d in DEPTHS)
    return found + [((f"write, {kind}", s, d), file.write_rate(Way(s, d, file.direct))) for s, d in writes]


def _ring_round(folder: Path, layout: PageLayout) -> list[tuple[tuple[str, int, int], float]]:
    pages = max(1, FILE_BYTES // layout.page_bytes)
    store = DiskStore(folder, pages * layout.page_bytes, layout)
    try:
        written = _write_pages(store)
        found = [(("write, pages", layout.part_stride, 4), written)]
        for what, huge in (("read, ring", False), ("read, ring in huge pages", True)):
            found += [((what, layout.part_stride, depth), _stream(store, depth, huge)) for depth in DEPTHS]
        return found
    finally:
        store.close()


def _write_pages(store: DiskStore) -> float:
    """Fill the store with pages that do not compress; bytes a second."""
    device, layout = CpuDevice(), store.layout
    arena = DeviceArena(device, 1, layout)
    engine = TransferEngine(device, {Tier.DEVICE: arena, Tier.DISK: store})
    noise = np.random.default_rng(0).bytes(layout.page_bytes)
    ctypes.memmove(arena.base, noise, layout.page_bytes)
    moves = [Move(UnitId(i), Tier.DEVICE, SlotId(0), Tier.DISK, SlotId(i)) for i in range(store.capacity)]
    began_s = time.monotonic()
    answer = engine.submit(moves, urgent=True).wait()
    seconds = time.monotonic() - began_s
    assert answer is Answer.HIT
    device.close()
    arena.close()
    return store.capacity * layout.page_bytes / seconds


def _stream(store: DiskStore, depth: int, huge: bool) -> float:
    """Stream every page layer by layer through a ring as decoding does, checksums included; bytes a second."""
    layout = store.layout
    device = CpuDevice(threads=depth)
    slots = max(2 * _RELEASED_AT_ONCE, _RING_BYTES // layout.part_stride)
    region = device.allocate(slots * layout.part_stride + HUGE_BYTES)
    advise_huge(region.address, region.nbytes, huge)
    base = -(-region.address // HUGE_BYTES) * HUGE_BYTES
    ring = device.ring(base, slots, layout.part_stride)
    engine = TransferEngine(device, {Tier.DISK: store}, ring)
    pages = np.arange(store.capacity)
    program = engine.program(np.full(len(pages), Tier.DISK), pages, np.arange(layout.layers))
    began_s = time.monotonic()
    first = engine.stream(program)
    last = first + len(program)
    for ticket in range(first, last, _RELEASED_AT_ONCE):
        end = min(ticket + _RELEASED_AT_ONCE, last)
        assert ring.wait(end) is Answer.HIT
        ring.release(end)
    seconds = time.monotonic() - began_s
    device.close()
    return len(program) * layout.part_stride / seconds


def _grid(rows: list[dict[str, Any]]) -> Grid:
    """One row for each kind and size, one column for each depth."""
    kinds = dict.fromkeys((row["what"], row["call_bytes"]) for row in rows)
    cells = {(row["what"], row["call_bytes"], row["in_flight"]): Spread(*row["bytes_per_s"]) for row in rows}

    def rate(kind: tuple[str, int], depth: int) -> str:
        found = cells.get((*kind, depth))
        return f"{found.mid / 1e9:.2f}" if found else "-"

    names = ("GB/s, calls in flight:", *map(str, DEPTHS))
    lines = [[f"{what} {size >> 10} KiB", *(rate((what, size), d) for d in DEPTHS)] for what, size in kinds]
    return Grid(names, lines)


def _notes(rows: list[dict[str, Any]], layout: PageLayout, direct: bool) -> list[str]:
    best = {
        verb: max(Spread(*r["bytes_per_s"]).mid for r in rows if r["what"].startswith(verb))
        for verb in ("read", "write")
    }
    how = (
        ""
        if direct
        else " This folder has no direct I/O: figures are of the page cache, dropped before each read."
    )
    return [
        f"Best read {best['read'] / 1e9:.2f} GB/s, best write {best['write'] / 1e9:.2f} GB/s. Ring: parts of "
        f"{layout.part_stride >> 10} KiB, neighbours joined, checksums verified.{how}"
    ]
